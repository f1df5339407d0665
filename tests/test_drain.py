"""The end of a server: what is under way may finish, what takes longer is told so, and nothing new begins."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from jackfield.engine.request import CacheUse, EngineEvent, FinishEvent, StartEvent, TokenEvent
from jackfield.errors import ShuttingDownError
from jackfield.hooks import RegisterBackend, RequestInfo, hookimpl
from jackfield.testing import JackfieldServer, StartServer
from serving import DEFAULTS, Server
from serving import serve_measured as serve
from test_discovery import install

BRAKE = """
import os, time
from pathlib import Path
from jackfield.hooks import hookimpl

released = Path(os.environ["RELEASED"])

def brake(tokens, logits):
    if not released.exists():
        time.sleep(0.02)
    return logits

class Plugin:
    @hookimpl
    def logits_processors(self, request):
        return [brake]
"""

SLOW = """
import sys, time
from jackfield.hooks import hookimpl

class Plugin:
    @hookimpl
    def prepare_model(self, model, config, device):
        print("Preparing", file=sys.stderr, flush=True)
        time.sleep(600)
"""

QUESTION = [{"role": "user", "content": "Hi"}]
DISK = {"JACKFIELD_PREFIX_CACHE_DISK_BYTES": "1GB"}
ENDLESS = {"ignore_eos": True}
PATIENCE = 60.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def told(server: Server, text: str) -> bool:
    return any(text in line for line in server.log)


def gauge(server: Server, name: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"jackfield_{name}{{"))


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as clients:
        yield clients


def plugged(site: Path, name: str, source: str) -> dict[str, str]:
    """The environment of a server with just this plugin."""
    install(site, name, source)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "JACKFIELD_PLUGINS": name}


@contextmanager
def slow(model: Path, tmp_path: Path, *flags: str, **environment: str) -> Iterator[tuple[Server, Path]]:
    """A server that takes its time for each token, as long as there is no such file."""
    site, released = tmp_path / "site", tmp_path / "released"
    site.mkdir()
    environment |= plugged(site, "brake", BRAKE)
    environment |= {"RELEASED": str(released), "JACKFIELD_CACHE_DIR": str(tmp_path / "cache")}
    with serve(model, *flags, **environment) as server:
        yield server, released


@contextmanager
def official(server: Server) -> Iterator[tuple[OpenAI, Anthropic]]:
    with (
        OpenAI(base_url=server.api, api_key="any", max_retries=0) as own,
        Anthropic(base_url=server.url, api_key="any", max_retries=0) as other,
    ):
        yield own, other


def endless(client: OpenAI, server: Server, **fields: Any) -> Any:
    return client.chat.completions.create(model=server.model, messages=QUESTION, extra_body=ENDLESS, **fields)


def speaking(stream: Any) -> None:
    """Waits for the first word."""
    assert any(chunk.choices[0].delta.content for chunk in stream)


def test_streams_finish_while_nothing_new_begins_and_everybody_can_see_it(tiny_model: Path, tmp_path: Path) -> None:
    with (
        slow(tiny_model, tmp_path, JACKFIELD_DRAIN_SECONDS="600") as (server, released),
        official(server) as (client, _),
        httpx2.Client() as kept_alive,
    ):
        assert kept_alive.get(f"{server.url}/ready").status_code == 200
        stream = endless(client, server, stream=True, max_tokens=200)
        speaking(stream)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: told(server, "Draining: 1 request, up to 600 s; a second signal ends at once."))
        for ask in (kept_alive.get, httpx2.get):
            ready = ask(f"{server.url}/ready")
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "shutting_down")
            assert ready.headers["Connection"] == "close"
        assert httpx2.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            endless(client, server)
        assert refused.value.code == "shutting_down"
        assert int(refused.value.response.headers["Retry-After"]) > 0
        released.touch()
        *_, last = stream
        assert last.choices[0].finish_reason == "length"
        assert server.process.wait(PATIENCE) == 0
    assert not told(server, "Ending")


def test_what_takes_longer_ends_with_an_error_that_each_client_understands(
    tiny_model: Path, tmp_path: Path, clients: ThreadPoolExecutor
) -> None:
    with (
        slow(tiny_model, tmp_path, JACKFIELD_DRAIN_SECONDS="0.1", **DISK) as (server, _),
        official(server) as (client, other),
    ):
        chat = endless(client, server, stream=True)
        response = client.responses.create(model=server.model, input="word " * 600, stream=True, extra_body=ENDLESS)
        message = other.messages.create(model=server.model, messages=QUESTION, max_tokens=8000, stream=True)
        whole = clients.submit(endless, client, server)
        streams = [iter(stream) for stream in (chat, response, message)]
        begun = [next(stream) for stream in streams]
        until(lambda: gauge(server, "num_requests_running") == 4)
        server.process.send_signal(signal.SIGTERM)
        for stream in streams[:2]:
            with pytest.raises(openai.APIError) as ended:
                list(stream)
            assert ended.value.code == "shutting_down"
        with pytest.raises(anthropic.APIStatusError) as message_ended:
            list(streams[2])
        assert message_ended.value.body["error"]["type"] == "overloaded_error"
        with pytest.raises(openai.InternalServerError) as refused:
            whole.result(PATIENCE)
        assert refused.value.code == "shutting_down"
        assert int(refused.value.response.headers["Retry-After"]) > 0
        assert begun[0].choices[0].delta.role == "assistant"
        assert server.process.wait(PATIENCE) == 0
    assert told(server, "Ending 4 requests after 0.1 s.")
    assert list(tmp_path.rglob("*.kv")), "what was computed is on disk"
    assert not told(server, "Traceback")


def test_who_waits_in_the_queue_is_told_at_once_and_a_second_signal_kills(
    tiny_model: Path, tmp_path: Path, clients: ThreadPoolExecutor
) -> None:
    with (
        slow(tiny_model, tmp_path, "--max-batch", "1", JACKFIELD_DRAIN_SECONDS="600") as (server, _),
        official(server) as (client, _other),
    ):
        stream = endless(client, server, stream=True)
        speaking(stream)
        queued = clients.submit(endless, client, server)
        until(lambda: gauge(server, "num_requests_waiting") == 1)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError) as refused:
            queued.result(PATIENCE)
        assert refused.value.code == "shutting_down"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == -signal.SIGTERM
        with pytest.raises(openai.APIConnectionError):
            list(stream)


# --- While nobody is served yet ------------------------------------------------------------------------------------


def ended(line: str, number: signal.Signals, *flags: str, **environment: str) -> tuple[int, str]:
    """What becomes of a server that is sent a signal once it has said ``line``: its status, and the rest it says."""
    command = [sys.executable, "-m", "jackfield", "serve", "--port", "0", *flags]
    whole = {**os.environ, **DEFAULTS, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=whole) as process:
        assert process.stderr is not None
        assert any(line in said for said in process.stderr)
        process.send_signal(number)
        try:
            return process.wait(PATIENCE), process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_model_that_still_loads_is_left(tiny_model: Path, tmp_path: Path, number: signal.Signals) -> None:
    environment = plugged(tmp_path, "slow", SLOW)
    status, said = ended("Preparing", number, "--model", str(tiny_model), **environment)
    assert status == 0
    assert "Traceback" not in said


def test_so_is_a_download(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = {"JACKFIELD_CACHE_DIR": str(tmp_path), "PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull}
        status, said = ended("Downloading the starter model", signal.SIGTERM, "--model", "starter", **environment)
        assert status == 0
        assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.whl"))


# --- What a real model seldom says ---------------------------------------------------------------------------------


TOOL = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "paint", "arguments": {}}\n</tool_call>'


class Elsewhere:
    """A backend that says one word and then nothing."""

    asked_for_more = False

    @hookimpl
    def register_backends(self, register: RegisterBackend) -> None:
        register("elsewhere", lambda server: self)

    @hookimpl
    def select_backend(self, request: RequestInfo, available: Sequence[str]) -> str:
        return "elsewhere"

    def serves(self, request: RequestInfo) -> bool:
        return True

    async def answer(self, request: RequestInfo, body: Any) -> AsyncIterator[str]:
        yield "Once"
        self.asked_for_more = True
        await asyncio.sleep(PATIENCE)


def drain(server: JackfieldServer, seconds: float = 0.0) -> "Future[None]":
    running = server._running
    return asyncio.run_coroutine_threadsafe(running._app.state.drain.finish(seconds, lambda line: None), running._loop)


def test_an_answer_with_a_call_ends_as_cut_off_since_clients_would_repeat_it(jackfield_server: StartServer) -> None:
    server = jackfield_server(tool_parser="hermes")
    server.plays(endless_script(server, f"Well. {CALL} And"))
    with server.streaming("Hi", tools=[TOOL], jackfield=True) as chunks:
        assert any(chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks)
        drain(server).result(PATIENCE)
        *_, last = chunks
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["jackfield"]["choices"][0]["ended_by"] == "shutdown"


@pytest.mark.parametrize("stream", [True, False])
def test_what_somebody_else_answers_ends_too(jackfield_server: StartServer, stream: bool) -> None:
    elsewhere = Elsewhere()
    server = jackfield_server(("elsewhere", elsewhere))
    with ThreadPoolExecutor() as clients:
        asked = clients.submit(server.chat, "Hi", stream=stream)
        server.wait_until(lambda: elsewhere.asked_for_more)
        drain(server).result(PATIENCE)
        reply = asked.result(PATIENCE)
    assert reply.status == (200 if stream else 503)
    assert '"shutting_down"' in reply.text
    assert server.plugin("elsewhere") is not None, "which is not its fault"


def test_a_choice_that_never_left_the_queue_ends_and_the_others_go_on(jackfield_server: StartServer) -> None:
    server = jackfield_server()
    server.says("Once upon")
    server.plays([[FinishEvent("error", ShuttingDownError())]])
    choices = server.chat("Hi", n=2, jackfield=True).json["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]
    assert [choice["message"]["content"] for choice in choices] == ["Once upon", ""]


def endless_script(server: JackfieldServer, text: str) -> list[list[EngineEvent]]:
    start: EngineEvent = StartEvent(0.0, CacheUse(miss="new"))
    return [[start], *([TokenEvent(token)] for token in server.tokenizer.encode(text))]
