"""Streams of other servers that are not quite as OpenAI's, and what a stream costs."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from faulty_upstream import DONE, STREAM, USAGE, FaultyUpstream, chunk, refuses, says
from jackfield.cli.main import main
from jackfield.testing import JackfieldServer, StartServer, serving

TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "time")]
THEIR_TOOLS: Any = [{"name": name, "input_schema": {"type": "object"}} for name in ("weather", "time")]
MESSAGE: Any = {"model": "far", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, faulty: FaultyUpstream) -> Iterator[JackfieldServer]:
    settings: Any = {
        "models": {"far": {"route": ["up"]}},
        "upstreams": {"up": {"url": faulty.url, "max_failures": 1000, "first_seconds": 5, "idle_seconds": 0.2}},
    }
    with serving(jackfield_tokenizer, **settings) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(faulty: FaultyUpstream) -> None:
    faulty.acts.clear()


def call(arguments: str | None, **fields: Any) -> bytes:
    named = {"function": {"name": "weather", "arguments": arguments}}
    return chunk(tool_calls=[named | fields])


def ends(finish: str = "tool_calls") -> bytes:
    return chunk(finish=finish) + USAGE + DONE


ROME, CET = '{"city": "Rome"}', '{"zone": "CET"}'
TIME = {"name": "time", "arguments": CET}
ONE_AFTER_THE_OTHER = {
    "without an index": call(ROME, id="a") + call(None, id="b", function=TIME),
    "without an index and an id": call(ROME) + call(None, function=TIME),
    "all with the same index": call(ROME, index=0, id="a") + call(None, index=0, id="b", function=TIME),
    "in one chunk": chunk(
        tool_calls=[{"id": "a", "function": {"name": "weather", "arguments": ROME}}, {"function": TIME}]
    ),
    "in pieces": call('{"city": ', index=0, id="a")
    + chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "weather", "arguments": '"Rome"'}}])
    + chunk(tool_calls=[{"function": {"arguments": "}"}}])
    + call(None, index=1, id="b", function=TIME),
}


@pytest.mark.parametrize("stream", ONE_AFTER_THE_OTHER.values(), ids=ONE_AFTER_THE_OTHER)
def test_calls_are_told_apart(server: JackfieldServer, faulty: FaultyUpstream, stream: bytes) -> None:
    faulty.acts.append(says(STREAM + stream + ends()))
    calls = server.chat("Hi", model="far", tools=TOOLS).json["choices"][0]["message"]["tool_calls"]
    found = [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in calls]
    assert found == [("weather", {"city": "Rome"}), ("time", {"zone": "CET"})]
    assert len({one["id"] for one in calls}) == 2


@pytest.mark.parametrize("arguments", [None, "", "null", "{}"])
def test_a_call_without_arguments_has_none(
    server: JackfieldServer, faulty: FaultyUpstream, arguments: str | None
) -> None:
    faulty.acts += [says(STREAM + call(arguments, index=0) + ends())] * 2
    (told,) = server.chat("Hi", model="far", tools=TOOLS).json["choices"][0]["message"]["tool_calls"]
    assert told["function"]["arguments"] == (arguments or "{}")
    (block,) = server.post("/v1/messages", MESSAGE | {"tools": THEIR_TOOLS}).json["content"]
    assert (block["type"], block["input"]) == ("tool_use", {})


def test_a_call_that_is_cut_is_none(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts += [says(STREAM + call('{"city": "Ro', index=0) + ends("length"))] * 3
    asked = MESSAGE | {"tools": THEIR_TOOLS}
    whole = server.post("/v1/messages", asked)
    assert (whole.status, whole.json["content"], whole.json["stop_reason"]) == (200, [], "max_tokens")
    streamed = server.post("/v1/messages", asked | {"stream": True})
    assert [one["type"] for one in streamed.chunks][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    tools = [{"type": "function", "name": "weather", "parameters": {}}]
    (item,) = server.post("/v1/responses", {"model": "far", "input": "Hi", "tools": tools}).json["output"]
    assert (item["type"], item["status"]) == ("function_call", "incomplete")


@pytest.mark.parametrize("arguments", ["{'city': 'Rome'}", "[1]", "Rome"])
def test_arguments_that_no_block_can_hold(server: JackfieldServer, faulty: FaultyUpstream, arguments: str) -> None:
    """OpenAI's clients get them as they are, Anthropic's an error that says so."""
    faulty.acts += [says(STREAM + call(arguments, index=0) + ends())] * 3
    (told,) = server.chat("Hi", model="far", tools=TOOLS).json["choices"][0]["message"]["tool_calls"]
    assert told["function"]["arguments"] == arguments
    asked = MESSAGE | {"tools": THEIR_TOOLS}
    whole = server.post("/v1/messages", asked)
    assert (whole.status, whole.json["error"]["type"]) == (502, "api_error")
    assert "'weather' has no JSON object" in whole.json["error"]["message"]
    streamed = server.post("/v1/messages", asked | {"stream": True}).chunks
    assert streamed[-1]["type"] == "error"
    assert streamed[-1]["error"]["message"] == whole.json["error"]["message"]


LAST_WORDS = {
    "the last word twice": chunk(content="Hello") + chunk(finish="stop") + chunk(finish="stop"),
    "more after it": chunk(content="Hello") + chunk(finish="stop") + chunk(content=" you"),
    "nothing for not yet": chunk(content="Hel", finish="") + chunk(content="lo", finish="") + chunk(finish="stop"),
    "in words of their own": chunk(content="Hello") + chunk(finish="eos_token"),
}


@pytest.mark.parametrize("stream", LAST_WORDS.values(), ids=LAST_WORDS)
def test_an_answer_ends_once(server: JackfieldServer, faulty: FaultyUpstream, stream: bytes) -> None:
    faulty.acts += [says(STREAM + stream + USAGE + DONE)] * 3
    choice = server.chat("Hi", model="far").json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")
    parts = [one for part in server.chat("Hi", model="far", stream=True).chunks for one in part["choices"]]
    assert [one["finish_reason"] for one in parts if one["finish_reason"]] == ["stop"]
    assert parts[-1]["finish_reason"] == "stop"
    message = server.post("/v1/messages", MESSAGE).json
    assert ([block["text"] for block in message["content"]], message["stop_reason"]) == (["Hello"], "end_turn")


@pytest.mark.parametrize("reason", ["model_length", "insufficient_system_resource", "max_tokens", "content_filter"])
def test_an_answer_that_was_cut_is_told_so(server: JackfieldServer, faulty: FaultyUpstream, reason: str) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Hel") + ends(reason)))
    assert server.chat("Hi", model="far").json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_was_broken_off_is_none(server: JackfieldServer, faulty: FaultyUpstream, reason: str) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Hel") + ends(reason)))
    reply = server.chat("Hi", model="far")
    assert (reply.status, reply.json["error"]["code"]) == (502, "upstream_error")
    assert f"broken off its answer ({reason})" in reply.json["error"]["message"]


def test_half_characters_are_joined(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    """As a server in JavaScript cuts them: half of 😀 in one chunk, and the rest in the next. Others have no half."""
    halves = chunk(content="Hi \ud83d") + chunk(content="\ude00\udc00!") + chunk(content="\ud83d") + ends("stop")
    faulty.acts += [says(STREAM + halves)] * 3
    assert server.chat("Hi", model="far").json["choices"][0]["message"]["content"] == "Hi 😀\ufffd!"
    parts = server.chat("Hi", model="far", stream=True).chunks
    assert "".join(one["delta"].get("content", "") for part in parts for one in part["choices"]) == "Hi 😀\ufffd!"
    assert server.post("/v1/messages", MESSAGE).json["content"][0]["text"] == "Hi 😀\ufffd!"


def test_numbers_beyond_all_numbers(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 1e999}}\n\n'
    faulty.acts.append(says(STREAM + chunk(content="Hi") + usage + ends("stop")))
    assert server.chat("Hi", model="far").json["error"]["code"] == "upstream_error"


# --- Waiting for the first token -------------------------------------------------------------------------------------

WAITING = 'jackfield_upstream_requests_waiting{upstream="up"} '


def test_a_role_is_no_token(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    """Another Jackfield says it long before the first one; until then it is ``first_seconds`` that count."""

    async def slowly(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(STREAM + chunk(role="assistant", content=""))
        await asyncio.to_thread(server.wait_until, lambda: waiting(server) == 1)
        await asyncio.sleep(0.4)
        writer.write(chunk(content="Hello") + ends("stop"))
        await writer.drain()

    faulty.acts.append(slowly)
    assert server.chat("Hi", model="far").content == "Hello"
    assert waiting(server) == 0


def waiting(server: JackfieldServer) -> float:
    (line,) = [line for line in server.get("/metrics").text.splitlines() if line.startswith(WAITING)]
    return float(line.removeprefix(WAITING))


# --- What it costs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def keyed(jackfield_server: StartServer, faulty: FaultyUpstream, tmp_path: Path) -> Callable[[], int]:
    """Asks with a key that may have a hundred tokens a minute; returns the status."""
    file = tmp_path / "keys.json"
    made = CliRunner().invoke(main, ["keys", "--file", str(file), "create", "ada", "--tpm", "100"])
    secret = made.stdout.strip()
    routes: Any = {
        "models": {"far": {"route": ["up"]}},
        "upstreams": {"up": {"url": faulty.url, "idle_seconds": 0.2}},
    }
    server = jackfield_server(keys_file=file, **routes)
    return lambda: server.chat("Hi", model="far", headers={"Authorization": f"Bearer {secret}"}).status


USED = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 200}}\n\n'


def test_tokens_of_others_count_against_a_keys_limit(keyed: Callable[[], int], faulty: FaultyUpstream) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Hi") + chunk(finish="stop") + USED + DONE))
    assert [keyed(), keyed()] == [200, 429]


@pytest.mark.parametrize("end", [b"", b"data: {\n\n"], ids=["ends early", "nonsense"])
def test_so_do_those_of_an_answer_that_breaks_off(keyed: Callable[[], int], faulty: FaultyUpstream, end: bytes) -> None:
    """A piece for a token, where nobody has counted them."""
    faulty.acts.append(says(STREAM + chunk(content="Hi ") * 150 + end))
    assert [keyed(), keyed()] == [502, 429]


def test_what_another_server_says_is_no_event_of_ours(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    """An answer with calls ends as cut off, with the reason in a comment."""
    error = {"error": {"message": 'no\n\ndata: {"choices": [{"delta": {"content": "evil"}}]}\n\n: '}}
    broken = call('{"city"', index=0) + b"data: " + json.dumps(error).encode() + b"\n\n"
    faulty.acts.append(says(STREAM + broken))
    reply = server.chat("Hi", model="far", tools=TOOLS, stream=True)
    assert ": Upstream up" in reply.text
    assert [line for line in reply.text.splitlines() if "evil" in line and not line.startswith(":")] == []
    assert reply.chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_whoever_asks_for_patience_beyond_all_numbers(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(refuses(429, b"{}", Retry_After="9" * 5000))
    reply = server.chat("Hi", model="far")
    assert (reply.status, reply.headers["retry-after"]) == (429, "3600")
