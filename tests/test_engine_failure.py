"""When the engine fails, its requests end with a clear error, and the server goes on."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import uvicorn

from jackfield.app import create_app
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Events, Scheduler
from jackfield.engine.thread import Engine
from jackfield.errors import EngineError, ModelLoadError
from jackfield.models.device import Blas, Device
from jackfield.models.loading import load_network
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.settings import Settings

CAPACITY = 4
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "ignore_eos": True}


@dataclass
class Fault:
    """Makes the engine fail in one of its next steps."""

    steps: list[Exception | threading.Event | None] = field(default_factory=list)
    """What happens in the next steps: an error, a wait, or nothing."""
    cancelling: list[Exception] = field(default_factory=list)
    """What goes wrong when requests are cancelled."""
    engine: Engine | None = None

    def happen(self) -> None:
        match self.steps.pop(0) if self.steps else None:
            case Exception() as error:
                raise error
            case threading.Event() as event:
                assert event.wait(60)


class FailingScheduler(Scheduler):
    """A real scheduler with a fault."""

    fault: Fault

    def step(self) -> Events:
        self.fault.happen()
        return super().step()

    def cancel(self, request_ids: frozenset[str]) -> None:
        if self.fault.cancelling:
            raise self.fault.cancelling.pop()
        super().cancel(request_ids)


@contextmanager
def serving(folder: Path, fault: Fault) -> Iterator[str]:
    """The real application in this process."""

    def load() -> Scheduler:
        network = load_network(folder, Device("cpu", "test", 1 << 30, Blas("test")))
        scheduler = FailingScheduler(Runner(network.model), PrefixCache(1 << 20), 4)
        scheduler.fault = fault
        return scheduler

    engine = fault.engine = Engine(load, CAPACITY)
    model = ServedModel("tiny", Tokenizer(folder), engine, 512, 49152, {})
    app = create_app(Settings(), Registry([model]))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))

    async def run() -> None:
        await engine.start()
        await server.serve()
        await engine.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def fault() -> Fault:
    return Fault()


@pytest.fixture(scope="module")
def url(tiny_model: Path, fault: Fault) -> Iterator[str]:
    with serving(tiny_model, fault) as address:
        yield address


def chat(url: str, **fields) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/chat/completions", json={**QUESTION, **fields}, timeout=60)


def events(response: httpx2.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), MemoryError("out of memory")], ids=repr)
def test_a_failing_step_is_a_retryable_error_and_the_next_request_is_answered(url, fault, error):
    fault.steps = [error]
    response = chat(url)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "engine_error"
    assert response.json()["error"]["suggestions"]
    assert chat(url).status_code == 200
    assert httpx2.get(f"{url}/ready").status_code == 200


def test_a_stream_that_fails_before_its_first_token_ends_with_the_error(url, fault):
    fault.steps = [RuntimeError("a kernel failed")]
    *_, last = events(chat(url, stream=True))
    assert last["error"]["code"] == "engine_error"


def test_a_stream_that_fails_in_the_middle_ends_as_cut_off(url, fault):
    fault.steps = [None, None, None, None, None, RuntimeError("a kernel failed")]
    chunks = events(chat(url, stream=True, n=2))
    assert not any("error" in chunk for chunk in chunks)
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert reasons == ["length", "length"]


def test_a_full_queue_is_429_with_its_length_and_when_to_try_again(url, fault):
    go_on = threading.Event()
    fault.steps = [go_on]
    with ThreadPoolExecutor() as clients:
        waiting = [clients.submit(chat, url, n=2), clients.submit(chat, url, n=2)]
        try:
            while len(fault.engine._waiting) < CAPACITY:
                time.sleep(0.01)
            response = chat(url, n=2, stream=True)
        finally:
            go_on.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "queue_full"
    assert "4 requests" in response.json()["error"]["message"]
    assert len(chat(url, n=2 * CAPACITY).json()["choices"]) == 2 * CAPACITY, "let in when nobody waits"


def test_a_failure_while_cancelling_ends_the_others_too_and_no_more(url, fault):
    go_on = threading.Event()
    fault.steps = [go_on]
    with ThreadPoolExecutor() as clients:
        other = clients.submit(chat, url)
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json={**QUESTION, "stream": True}) as leaving:
            next(leaving.iter_lines())
            fault.cancelling = [MemoryError("no memory to keep its prefix")]
        while fault.engine._inbox.empty():
            time.sleep(0.01)
        go_on.set()
        assert other.result().status_code == 503
    assert not fault.cancelling
    assert chat(url).status_code == 200


def test_a_failure_forgets_the_prefixes_that_may_be_damaged(url, fault):
    long = {"messages": [{"role": "user", "content": "again and " * 60}], "max_tokens": 1}
    chat(url, **long)
    assert chat(url, **long).json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    fault.steps = [RuntimeError("a kernel failed")]
    assert chat(url, **long).status_code == 503
    assert chat(url, **long).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_bug_in_an_endpoint_is_an_envelope_too(url, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("jackfield.api.models._model", broken)
    response = httpx2.get(f"{url}/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


def test_a_body_that_is_too_large_is_413(url, monkeypatch):
    response = httpx2.post(f"{url}/v1/chat/completions", content=b" " * (Settings().max_body_bytes + 1), timeout=60)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


async def started(engine: Engine) -> None:
    await engine.start()


def test_a_model_that_does_not_load_fails_the_start():
    def load() -> Scheduler:
        raise ModelLoadError("no such model")

    engine = Engine(load)
    with pytest.raises(ModelLoadError, match="no such model"):
        asyncio.run(started(engine))
    assert not engine.ready


def test_a_stopped_engine_refuses_and_ready_says_so(tiny_model, fault):
    from jackfield.engine.request import GenerationRequest, SamplingParameters

    fault.steps = []
    with serving(tiny_model, fault) as address:
        assert httpx2.get(f"{address}/ready").status_code == 200

    async def check() -> None:
        network_free = Engine(lambda: FailingScheduler.__new__(FailingScheduler))
        assert not network_free.ready
        with pytest.raises(EngineError):
            network_free.submit(GenerationRequest("a", (1,), 1, SamplingParameters()), lambda _: None)

    asyncio.run(check())
