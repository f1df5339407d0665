"""Routes that lead to backends which plugins bring."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jackfield.errors import ConfigurationError
from jackfield.hooks import hookimpl
from jackfield.testing import JackfieldServer, StartServer, serving

TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


class Clerk:
    """A backend that does what the test says."""

    bodies: list[dict[str, Any]] = []  # noqa: RUF012 - cleared by a fixture
    does: Callable[[], AsyncIterator[str]]
    free = True

    def __init__(self, server: object) -> None:
        self.server = server

    def serves(self, request: object) -> bool:
        return Clerk.free

    def answer(self, request: object, body: dict[str, Any]) -> AsyncIterator[str]:
        Clerk.bodies.append(body)
        return Clerk.does()


class Brings:
    @hookimpl
    def register_backends(self, register: Callable[..., None]) -> None:
        register("clerk", Clerk)


async def speaks() -> AsyncIterator[str]:
    task = asyncio.current_task()
    for piece in ("Quite ", "so."):
        yield piece
        assert asyncio.current_task() is task


async def fails() -> AsyncIterator[str]:
    raise OSError("secret")
    yield ""


async def breaks() -> AsyncIterator[str]:
    yield "Half"
    raise OSError("secret")


ROUTES = {
    "far": {"route": [{"backend": "clerk", "model": "the-clerks-own"}]},
    "scripted": {"route": ["clerk", "mlx"]},
}


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path) -> Iterator[JackfieldServer]:
    with serving(jackfield_tokenizer, ("b", Brings()), models=ROUTES, may_fail=True, max_plugin_failures=1000) as one:
        yield one


@pytest.fixture(autouse=True)
def fresh(server: JackfieldServer) -> None:
    Clerk.does, Clerk.free = speaks, True
    Clerk.bodies.clear()
    server.requests.clear()


def attempts(extension: Any) -> list[tuple[str, str, str | None]]:
    return [(one["backend"], one["outcome"], one.get("reason")) for one in extension["attempts"]]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_plugin_answers_for_a_model_that_is_not_here(server: JackfieldServer, stream: bool) -> None:
    reply = server.chat("Hi", model="far", stream=stream, jackfield=True)
    assert (reply.content, reply.finish_reason) == ("Quite so.", "stop")
    assert attempts(reply.extension) == [("clerk", "answered", None)]
    assert reply.extension["backend"] == "clerk"
    (body,) = Clerk.bodies
    assert (body["model"], body["messages"][0]["content"]) == ("the-clerks-own", "Hi")
    done = server.record("completed", reply.request_id).data
    assert (done["backend"], done["completion_tokens"]) == ("clerk", 3)
    assert not server.requests
    states = {one["id"]: one["jackfield"]["state"] for one in server.get("/v1/models").json["data"]}
    assert states["far"] == "remote"


def test_a_gap_is_put_into_the_words_it_knows(server: JackfieldServer) -> None:
    reply = server.post("/infill", {"model": "far", "input_prefix": "a", "input_suffix": "b"})
    assert (reply.json["content"], reply.json["truncated"]) == ("Quite so.", False)
    assert (Clerk.bodies[0]["prompt"], Clerk.bodies[0]["suffix"]) == ("a", "b")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_next_way_is_taken_when_it_fails(server: JackfieldServer, stream: bool) -> None:
    Clerk.does = fails
    server.says("Mine.")
    reply = server.chat("Hi", stream=stream, jackfield=True)
    assert reply.content == "Mine."
    assert attempts(reply.extension) == [("clerk", "failed", "upstream_error"), ("mlx", "answered", None)]
    assert server.event("backend_fallback", reply.request_id).data["reason"] == "upstream_error"


@pytest.mark.parametrize(
    ("fields", "attempt"),
    [
        ({"tools": [TOOL]}, ("clerk", "skipped", "capability")),
        ({"logprobs": True}, ("clerk", "skipped", "capability")),
        ({"n": 2}, ("clerk", "failed", "unsupported_value")),
        ({"regex": "M.*"}, ("clerk", "skipped", "capability")),
    ],
    ids=str,
)
def test_what_it_cannot_give_is_given_here(
    server: JackfieldServer, fields: dict[str, Any], attempt: tuple[str, str, str]
) -> None:
    server.says("Mine.")
    server.says("Mine too.")
    reply = server.chat("Hi", jackfield=True, **fields)
    assert reply.content == "Mine."
    assert attempts(reply.extension) == [attempt, ("mlx", "answered", None)]
    server.engine.scripts.clear()


def test_it_may_decline(server: JackfieldServer) -> None:
    Clerk.free = False
    server.says("Mine.")
    assert attempts(server.chat("Hi", jackfield=True).extension)[0] == ("clerk", "skipped", "declined")
    reply = server.chat("Hi", model="far")
    assert (reply.status, "clerk: declined" in reply.text) == (503, True)


def test_it_gives_words_and_nothing_else(server: JackfieldServer) -> None:
    assert server.post("/v1/embeddings", {"model": "scripted", "input": "Hi"}).status == 200
    assert server.post("/v1/tokenize", {"model": "scripted", "prompt": "Hi"}).json["count"] == 2
    reply = server.post("/v1/tokenize", {"model": "far", "prompt": "Hi"})
    assert (reply.status, "clerk: capability" in reply.text) == (503, True)


def test_one_that_breaks_in_the_middle_ends_with_an_error(server: JackfieldServer) -> None:
    Clerk.does = breaks
    reply = server.chat("Hi", stream=True)
    assert reply.content == "Half"
    assert [one["error"]["code"] for one in reply.chunks if "error" in one] == ["upstream_error"]
    assert "secret" not in reply.text
    # In one piece nothing has been sent yet.
    server.says("Mine.")
    assert server.chat("Hi").content == "Mine."


def test_one_that_is_disabled_is_passed_over(jackfield_server: StartServer) -> None:
    own = jackfield_server(("b", Brings()), models=ROUTES, may_fail=True, max_plugin_failures=1)
    Clerk.does = fails
    for expected in (("clerk", "failed", "upstream_error"), ("clerk", "skipped", "circuit_open")):
        own.says("Mine.")
        assert attempts(own.chat("Hi", jackfield=True).extension)[0] == expected


def test_a_slip_in_the_name_is_told_before_a_model_is_loaded(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError, match="leads to 'clrek'") as told:
        jackfield_server(("b", Brings()), models={"far": {"route": ["clrek"]}})
    assert told.value.suggestions[0] == "Did you mean 'clerk'?"


def test_no_backend_is_called_as_an_upstream_is(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError, match="'clerk', which is there already"):
        jackfield_server(("b", Brings()), upstreams={"clerk": {"url": "http://127.0.0.1:1/v1"}})


class Broken:
    @hookimpl
    def register_backends(self, register: Callable[..., None]) -> None:
        raise OSError


def test_a_plugin_that_fails_takes_its_way_with_it_and_no_more(jackfield_server: StartServer) -> None:
    own = jackfield_server(("b", Broken()), models=ROUTES, may_fail=True)
    own.says("Mine.")
    reply = own.chat("Hi", jackfield=True)
    assert attempts(reply.extension) == [("clerk", "skipped", "circuit_open"), ("mlx", "answered", None)]
