"""What plugins may do wrong in less obvious ways than to raise or to hang, and what must not come of it."""

import asyncio
import http.client
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NoReturn

import pytest
from prometheus_client import CollectorRegistry, Gauge
from pydantic import BaseModel, Field
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route

from jackfield import settings as configuration
from jackfield.errors import ConfigurationError
from jackfield.hooks import Compressed, Confidence, Identity, TextDelta, hookimpl
from jackfield.hooks.discovery import given
from jackfield.testing import JackfieldServer, StartServer
from test_hooks import LONG, Good, ask, backend, hangs, implementing, middleware, report, speaks

FEW = {"max_plugin_failures": 2}
SECONDS = 60
"""That something may take at most which takes no time at all."""


def is_disabled(server: JackfieldServer, hook: str) -> None:
    """The bad plugin has been disabled for what it did at this hook."""
    server.wait_until(lambda: server.hooks.named("bad").state == "disabled")
    assert report(server, "bad")["failures"] == FEW["max_plugin_failures"]
    assert hook in report(server, "bad")["errors"][0]


# --- Letting requests in ---------------------------------------------------------------------------------------------


class Door:
    @hookimpl
    def authenticate(self, request: Any) -> Identity | None:
        return Identity("user") if request.headers.get("authorization") == "Bearer k" else None


class WrongArgument:
    @hookimpl
    def authenticate(self, req: Any) -> None:
        """Nobody is let in."""


class UnknownHook(Door):
    @hookimpl
    def on_evnet(self) -> None:
        """There is no such hook."""


class CannotBeMade(Door):
    def __init__(self) -> None:
        raise RuntimeError("no file of keys")


@pytest.mark.parametrize("kind", [WrongArgument, UnknownHook, CannotBeMade])
def test_a_door_that_cannot_be_put_in_keeps_the_server_from_starting(
    jackfield_server: StartServer, kind: type[Any]
) -> None:
    with pytest.raises(ConfigurationError, match="door"):
        jackfield_server(("door", kind), may_fail=True)


@pytest.mark.parametrize("host", ["x", "x/v1/models?", "x/v1/models#", "x/health?"])
def test_no_host_header_opens_another_door(jackfield_server: StartServer, host: str) -> None:
    server = jackfield_server(("door", Door()))
    for path in ("/metrics", "/v1/plugins"):
        assert server.get(path, headers={"Host": host, "Authorization": "Bearer k"}).status in (400, 403)
        assert server.get(path, headers={"Host": host}).status in (400, 401)


# --- Ways to fail ----------------------------------------------------------------------------------------------------


def exits() -> NoReturn:
    sys.exit(3)


async def exits_async() -> NoReturn:
    sys.exit(3)


def cancels() -> NoReturn:
    raise asyncio.CancelledError


async def cancels_async() -> NoReturn:
    raise asyncio.CancelledError


@pytest.mark.parametrize("behaviour", [exits, exits_async, cancels, cancels_async], ids=lambda f: f.__name__)
@pytest.mark.parametrize("hook", ["transform_request", "score_confidence", "log_record"])
def test_neither_an_exit_nor_a_cancellation_gets_out(
    jackfield_server: StartServer, hook: str, behaviour: Callable[..., Any]
) -> None:
    server = jackfield_server(("good", Good()), ("bad", implementing(hook, behaviour)), may_fail=True, **FEW)
    for _ in range(2):
        ask(server)
    is_disabled(server, hook)
    server.wait_until(lambda: [record.kind for record in server.records].count("completed") == 4)
    assert report(server, "good")["failures"] == 0


async def cancels_itself(app: Any, scope: Any, receive: Any, send: Any) -> NoReturn:
    raise asyncio.CancelledError


async def forgets_the_request(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Neither passed on nor answered."""


@pytest.mark.parametrize("call", [cancels_itself, forgets_the_request], ids=lambda f: f.__name__)
def test_requests_go_past_middleware_that_loses_them(jackfield_server: StartServer, call: Callable[..., Any]) -> None:
    server = jackfield_server(("bad", middleware(call)), may_fail=True, **FEW)
    for _ in range(2):
        server.says("Hello")
        assert server.chat("Hi").content == "Hello"
    is_disabled(server, "register_middleware")


def yields_and_fails() -> Iterator[Callable[..., Any]]:
    yield lambda tokens, logits: logits
    raise ValueError("no")


@pytest.mark.parametrize("answer", [lambda: lambda tokens, logits: logits, yields_and_fails], ids=["function", "fails"])
def test_processors_that_are_no_list_cost_nobody_an_answer(
    jackfield_server: StartServer, answer: Callable[..., Any]
) -> None:
    server = jackfield_server(("bad", implementing("logits_processors", answer)), may_fail=True, **FEW)
    for _ in range(3):
        server.says("Hello")
        assert server.chat("Hi").content == "Hello"
    is_disabled(server, "logits_processors")


def test_a_sampler_may_leave_tokens_to_the_built_in_one(jackfield_server: StartServer) -> None:
    asked: list[Any] = []
    server = jackfield_server(("p", implementing("make_sampler", lambda: asked.append)), **FEW)
    for _ in range(3):
        server.says("Hello")
        assert server.chat("Hi").content == "Hello"
    assert len(asked) == 3 * len("Hello")


def test_waiting_in_line_is_not_the_plugins_failure(jackfield_server: StartServer) -> None:
    """Each call takes a small part of what it may, and all of them together more."""
    never = threading.Event()
    slow = implementing("transform_request", lambda: never.wait(0.2) or None)
    server = jackfield_server(("slow", slow), may_fail=True, hook_seconds=1.5)
    with ThreadPoolExecutor(10) as clients:
        assert {reply.status for reply in clients.map(server.chat, ["Hi"] * 10)} == {200}
    assert report(server, "slow")["state"] == "active"


# --- Wrong answers ---------------------------------------------------------------------------------------------------

NO_CONFIDENCE = {
    "a factor": Confidence(0.5, "medium", {"a": None}),  # type: ignore[dict-item]
    "factors": Confidence(0.5, "medium", None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("wrong", NO_CONFIDENCE.values(), ids=NO_CONFIDENCE)
def test_a_confidence_without_its_numbers(jackfield_server: StartServer, wrong: Confidence) -> None:
    bad = implementing("score_confidence", lambda: wrong)
    server = jackfield_server(("good", Good()), ("bad", bad), may_fail=True, **FEW)
    ask(server)
    is_disabled(server, "score_confidence")


@pytest.mark.parametrize("wrong", [TextDelta(0, None), TextDelta(0, b"x")], ids=["none", "bytes"])  # type: ignore[arg-type]
def test_a_delta_without_text(jackfield_server: StartServer, wrong: TextDelta) -> None:
    bad = implementing("transform_delta", lambda: wrong)
    server = jackfield_server(("good", Good()), ("bad", bad), may_fail=True, **FEW)
    ask(server)
    is_disabled(server, "transform_delta")
    assert report(server, "good")["failures"] == 0


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}
NOT_SHORTER = {
    "report": Compressed([{"role": "user", "content": "short"}], {"x": object()}),
    "image": Compressed([{"role": "user", "content": [IMAGE]}]),
}


@pytest.mark.parametrize("wrong", NOT_SHORTER.values(), ids=NOT_SHORTER)
def test_a_conversation_that_cannot_be_used(jackfield_server: StartServer, wrong: Compressed) -> None:
    """It goes to the model as it was."""
    bad = implementing("compress_context", lambda: wrong)
    server = jackfield_server(("bad", bad), may_fail=True, context_budget=16, **FEW)
    for stream in (False, True):
        server.says("Hello")
        reply = server.chat("Many words. " * 5, stream=stream, jackfield=True)
        assert reply.content == "Hello"
        assert reply.extension.get("compression") is None
        assert len(server.requests[-1].prompt) > 60
    is_disabled(server, "compress_context")


def test_then_the_next_plugin_may_make_it_shorter(jackfield_server: StartServer) -> None:
    bad = implementing("compress_context", lambda: NOT_SHORTER["image"])
    server = jackfield_server(("good", Good()), ("bad", bad), may_fail=True, **FEW)
    ask(server, LONG)
    is_disabled(server, "compress_context")


PLAIN = (
    "configure",
    "register_commands",
    "register_model_sources",
    "register_tool_parsers",
    "register_backends",
    "register_metrics",
    "token_signals",
    "prepare_model",
    "register_routes",
    "register_middleware",
    "observe_tokens",
    "logits_processors",
    "make_sampler",
)


async def nothing() -> None:
    """Comes from a function that nobody would await."""


@pytest.mark.parametrize("hook", PLAIN)
def test_what_must_be_plain_may_not_be_async(jackfield_server: StartServer, hook: str) -> None:
    server = jackfield_server(("bad", implementing(hook, nothing)), may_fail=True, **FEW)
    assert report(server, "bad")["state"] == "failed"
    assert hook in report(server, "bad")["errors"][0]
    assert server.chat("Hi").status == 200


# --- Metrics ---------------------------------------------------------------------------------------------------------


def test_a_metric_that_fails_costs_the_others_nothing(jackfield_server: StartServer) -> None:
    class Metrics:
        def __init__(self, name: str, read: Callable[[], float]) -> None:
            self.name = name
            self.read = read

        @hookimpl
        def register_metrics(self, registry: CollectorRegistry) -> None:
            Gauge(self.name, "One.", registry=registry).set_function(self.read)

    good, bad = Metrics("jackfield_good", lambda: 7), Metrics("jackfield_bad", lambda: 1 / 0)
    server = jackfield_server(("good", good), ("bad", bad), may_fail=True)
    for _ in range(2):
        reply = server.get("/metrics")
        assert reply.status == 200
        assert "jackfield_good 7.0" in reply.text
        assert 'jackfield_num_requests_waiting{model_name="scripted"} 0.0' in reply.text
    assert report(server, "bad")["failures"] >= 1
    assert "register_metrics" in report(server, "bad")["errors"][0]
    assert report(server, "good")["failures"] == 0


# --- Routes, names and settings --------------------------------------------------------------------------------------


async def mine(request: Any) -> PlainTextResponse:
    return PlainTextResponse("mine")


class Endpoint(HTTPEndpoint):
    async def get(self, request: Any) -> PlainTextResponse:
        return PlainTextResponse("mine")

    post = get


PAGE = PlainTextResponse("mine")
GREEDY: dict[str, BaseRoute] = {
    "mount-v1": Mount("/v1", app=PAGE),
    "mount-all": Mount("/", app=PAGE),
    "mount-routes": Mount("/v1", routes=[Route("/models", mine)]),
    "parameters": Route("/v1/{a}/{b}", mine, methods=["GET", "POST"]),
    "path": Route("/{path:path}", mine, methods=["GET", "POST"]),
    "endpoint": Route("/v1/chat/completions", Endpoint),
}


@pytest.mark.parametrize("route", GREEDY.values(), ids=GREEDY)
def test_no_route_takes_the_place_of_a_built_in_one(jackfield_server: StartServer, route: BaseRoute) -> None:
    """It is refused, or it gets what nobody else serves."""
    try:
        server = jackfield_server(("p", implementing("register_routes", lambda: [route])))
    except ConfigurationError:
        return
    server.says("Hello")
    assert server.chat("Hi").content == "Hello"
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/models/scripted", "/models", "/v1/plugins"):
        reply = server.get(path)
        assert reply.status == 200
        assert reply.text != "mine"


def test_what_is_free_may_be_served(jackfield_server: StartServer) -> None:
    routes = [Mount("/pages", app=PAGE), Route("/v1/mine", Endpoint), Route("/v1/mine/{name}", mine)]
    server = jackfield_server(("p", implementing("register_routes", lambda: routes)))
    for path in ("/pages/one", "/v1/mine", "/v1/mine/one"):
        assert server.get(path).text == "mine"


@pytest.mark.parametrize(
    ("hook", "names"),
    [
        ("register_backends", ["mlx"]),
        ("register_backends", ["mine", "mine"]),
        ("register_tool_parsers", ["hermes"]),
        ("register_tool_parsers", ["mine", "mine"]),
        ("register_model_sources", ["mine", "mine"]),
    ],
)
def test_a_name_that_is_taken_is_refused(jackfield_server: StartServer, hook: str, names: list[str]) -> None:
    def bring(self: object, register: Callable[..., None]) -> None:
        for name in names:
            register(name, lambda *_: object())

    plugin = type("Brings", (), {hook: hookimpl(bring)})()
    with pytest.raises(ConfigurationError, match=f"'{names[0]}'"):
        if hook == "register_model_sources":
            given([("p", plugin)], configuration.load({}, environment={})).model_sources()
        else:
            jackfield_server(("p", plugin))


class Lax(BaseModel):
    """Forgets ``extra="forbid"``."""

    colour: str = "red"
    width: int = Field(5, alias="line-width")


def test_unknown_settings_are_refused_though_the_plugin_would_take_them(jackfield_server: StartServer) -> None:
    plugin = implementing("configure", lambda: Lax)
    with pytest.raises(ConfigurationError, match=r"Unknown setting 'color' in \[plugins.p\]"):
        jackfield_server(("p", plugin), settings={"p": {"color": "blue"}})
    server = jackfield_server(("p", plugin), settings={"p": {"colour": "blue", "line-width": 7}})
    assert isinstance(server.hooks.named("p").settings, Lax)
    assert server.hooks.named("p").settings.width == 7


# --- Backends --------------------------------------------------------------------------------------------------------


class Signals:
    @hookimpl
    def token_signals(self) -> set[str]:
        return {"logprob", "entropy", "top_k"}


def test_a_backend_answers_though_somebody_asks_for_signals(jackfield_server: StartServer) -> None:
    server = jackfield_server(("signals", Signals()), ("b", backend(speaks)))
    for stream in (False, True):
        assert server.chat("afar", stream=stream).content == "From afar"
    assert not server.requests


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"response_format": {"type": "json_object"}}], ids=str)
def test_what_a_backend_has_not_got_comes_from_the_engine(
    jackfield_server: StartServer, fields: dict[str, Any]
) -> None:
    server = jackfield_server(("signals", Signals()), ("b", backend(speaks)))
    for stream in (False, True):
        server.says("{}")
        assert server.chat("Hi", stream=stream, **fields).content == "{}"
    assert server.chat("afar", response_format={"type": "text"}).content == "From afar"


def test_a_backends_failures_count_only_in_a_row(jackfield_server: StartServer) -> None:
    fails = iter([True, False] * 3 + [True, True])

    async def speaks_sometimes(body: dict[str, Any]) -> AsyncIterator[str]:
        if next(fails):
            raise OSError("unplugged")
        yield "From afar"

    server = jackfield_server(("bad", backend(speaks_sometimes)), may_fail=True, **FEW)
    for said in ["Hello", "From afar"] * 3 + ["Hello"]:
        if said == "Hello":
            server.says("Hello")
        assert server.chat("Hi").content == said
        assert report(server, "bad")["state"] == "active"
    server.says("Hello")
    assert server.chat("Hi").content == "Hello"
    assert report(server, "bad")["state"] == "disabled"


def test_a_request_without_time_left_is_not_the_backends_failure(jackfield_server: StartServer) -> None:
    server = jackfield_server(("b", backend(hangs)), max_plugin_failures=2)
    for _ in range(3):
        assert server.chat("Hi", timeout=0.1).status == 504
    assert not server.requests


class Words:
    """An iterator that cannot be closed."""

    def __init__(self) -> None:
        self._words = iter(["From ", "afar"])

    def __aiter__(self) -> "Words":
        return self

    async def __anext__(self) -> str:
        for word in self._words:
            return word
        raise StopAsyncIteration


def test_a_backends_answer_may_be_any_iterator(jackfield_server: StartServer) -> None:
    server = jackfield_server(("b", backend(lambda body: Words())))
    for stream in (False, True):
        assert server.chat("Hi", stream=stream).content == "From afar"


# --- Privacy ---------------------------------------------------------------------------------------------------------

SECRET = "a secret ailment"


class Quotes:
    """Raises errors that say what the user or the model said."""

    @hookimpl
    def transform_request(self, body: dict[str, Any]) -> None:
        int(body["messages"][0]["content"])


class QuotesInAnswer:
    @hookimpl
    def transform_request(self, body: dict[str, Any]) -> dict[str, Any]:
        return body | {"temperature": body["messages"][0]["content"]}


class QuotesAnswer:
    @hookimpl
    def score_confidence(self, text: str) -> None:
        int(text)


class QuotesCalls:
    """A parser of tool calls."""

    def __init__(self, names: frozenset[str]) -> None:
        self.text = ""

    def push(self, text: str) -> list[str]:
        self.text += text
        return []

    def finish(self) -> list[str]:
        return [str(int(self.text))]

    @classmethod
    def plugin(cls) -> object:
        class Parser:
            @hookimpl
            def register_tool_parsers(self, register: Callable[..., None]) -> None:
                register("quotes", cls)

        return Parser()


async def quotes_at_once(body: dict[str, Any]) -> AsyncIterator[str]:
    yield str(int(body["messages"][0]["content"]))


QUOTING: dict[str, Callable[[], object]] = {
    "request": Quotes,
    "answer-to-hook": QuotesInAnswer,
    "answer": QuotesAnswer,
    "parser": QuotesCalls.plugin,
    "backend": lambda: backend(quotes_at_once),
}


@pytest.mark.parametrize("make", QUOTING.values(), ids=QUOTING)
def test_what_errors_quote_is_told_to_nobody(
    jackfield_server: StartServer, make: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parser = "quotes" if make == QuotesCalls.plugin else "hermes"
    server = jackfield_server(("bad", make()), may_fail=True, tool_parser=parser, **FEW)
    tools = [{"type": "function", "function": {"name": "paint"}}] if parser == "quotes" else None
    for stream in (False, True):
        server.says(SECRET)
        assert server.chat(SECRET, stream=stream, tools=tools).content == SECRET
    assert "secret" not in str(server.event("plugin_disabled"))
    told = server.get("/v1/plugins").text
    assert "Error" in told
    assert "secret" not in told + str(server.events) + str(server.records) + server.get("/metrics").text
    assert "Plugin bad is disabled" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_is_told_by_its_kind_and_place(jackfield_server: StartServer) -> None:
    server = jackfield_server(("bad", Quotes()), may_fail=True, **FEW)
    assert server.chat(SECRET).status == 200
    (error,) = report(server, "bad")["errors"]
    assert "transform_request" in error
    assert "ValueError" in error
    assert "test_plugin_faults" in error


# --- Hanging up ------------------------------------------------------------------------------------------------------


def hang_up_when(began: threading.Event, server: JackfieldServer, content: str, **fields: Any) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": content}], **fields}
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=SECONDS)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        assert began.wait(SECONDS)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_hangs_up_while_its_answer_is_judged(jackfield_server: StartServer, stream: bool) -> None:
    began = threading.Event()

    async def judge() -> None:
        began.set()
        await asyncio.sleep(3600)

    slow = implementing("score_confidence", judge)
    server = jackfield_server(("slow", slow), hook_seconds=SECONDS)
    hang_up_when(began, server, "Hi", stream=stream)
    assert server.record("cancelled").request.id == server.record("received").request.id
    assert server.event("cancelled")
    assert "completed" not in [record.kind for record in server.records]


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_hangs_up_while_its_conversation_is_made_shorter(
    jackfield_server: StartServer, stream: bool, plain: bool
) -> None:
    began, released = threading.Event(), threading.Event()
    shorter = Compressed([{"role": "user", "content": "short"}])

    def compress() -> Compressed:
        began.set()
        released.wait(SECONDS)
        return shorter

    async def compress_async() -> Compressed:
        return await asyncio.to_thread(compress)

    slow = implementing("compress_context", compress if plain else compress_async)
    server = jackfield_server(("slow", slow), context_budget=64, hook_seconds=SECONDS)
    try:
        hang_up_when(began, server, "Many words. " * 10, stream=stream)
        server.record("cancelled")
    finally:
        released.set()
    assert server.chat("Hi").status == 200
    server.stop()
    assert len(server.requests) == 1


# --- More places where an exit or a cancellation must not get out ----------------------------------------------------

ENDS = [SystemExit, asyncio.CancelledError]


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("where", ["answer", "serves"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_engine_answers_when_a_backend_exits(
    jackfield_server: StartServer, stream: bool, where: str, error: type[BaseException]
) -> None:
    async def answer(body: dict[str, Any]) -> AsyncIterator[str]:
        raise error
        yield ""

    def serves() -> bool:
        if where == "serves":
            raise error
        return True

    server = jackfield_server(("bad", backend(answer, serves)), may_fail=True, **FEW)
    for _ in range(2):
        server.says("Hello")
        assert server.chat("Hi", stream=stream).content == "Hello"
    is_disabled(server, "register_backends")


@pytest.mark.parametrize("error", ENDS)
def test_a_parser_that_exits_costs_no_text(jackfield_server: StartServer, error: type[BaseException]) -> None:
    class Parser:
        def __init__(self, names: frozenset[str]) -> None:
            """It takes any names."""

        def push(self, text: str) -> NoReturn:
            raise error

    class Brings:
        @hookimpl
        def register_tool_parsers(self, register: Callable[..., None]) -> None:
            register("mine", Parser)

    server = jackfield_server(("bad", Brings()), may_fail=True, tool_parser="mine", **FEW)
    tools = [{"type": "function", "function": {"name": "paint"}}]
    for _ in range(2):
        server.says("Hello")
        assert server.chat("Hi", tools=tools).content == "Hello"
    is_disabled(server, "register_tool_parsers")


@pytest.mark.parametrize("error", ENDS)
def test_middleware_that_exits_when_it_is_made_is_passed_by(
    jackfield_server: StartServer, error: type[BaseException]
) -> None:
    def make(app: Any) -> NoReturn:
        raise error

    layers = implementing("register_middleware", lambda: [Middleware(make)])  # type: ignore[arg-type]
    server = jackfield_server(("bad", layers), may_fail=True)
    assert server.chat("Hi").status == 200
    assert report(server, "bad")["failures"] == 1


@pytest.mark.parametrize("behaviour", [exits, cancels], ids=lambda f: f.__name__)
def test_whoever_observes_tokens_and_exits_is_disabled(
    jackfield_server: StartServer, behaviour: Callable[..., Any]
) -> None:
    server = jackfield_server(("bad", implementing("observe_tokens", behaviour)), may_fail=True, **FEW)
    server.chat("Hi")
    is_disabled(server, "observe_tokens")


class Renamed:
    def __init__(self) -> None:
        raise RuntimeError("no file of keys")

    @hookimpl(specname="authenticate")
    def knock(self, request: Any) -> None:
        """Nobody is let in."""


def test_a_door_by_another_name_is_a_door(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError, match="door"):
        jackfield_server(("door", Renamed), may_fail=True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_a_backend_quotes_in_the_middle_of_its_answer_is_told_to_nobody(
    jackfield_server: StartServer, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(body: dict[str, Any]) -> AsyncIterator[str]:
        yield "Half"
        int(body["messages"][0]["content"])

    caplog.set_level(logging.INFO)
    server = jackfield_server(("bad", backend(answer)), may_fail=True)
    reply = server.chat(SECRET, stream=stream)
    server.record("failed")
    server.stop()
    assert "secret" not in caplog.text + reply.text + str(server.records) + str(server.events)
