"""A plugin that fails or hangs, at every hook: it costs no more than its time limit, and nobody else anything."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.client import IncompleteRead
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict, SecretStr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from contract import validator
from jackfield.errors import ConfigurationError, InvalidRequestError
from jackfield.hooks import (
    Compressed,
    Confidence,
    Event,
    Identity,
    TextDelta,
    ToolCallText,
    hookimpl,
)
from jackfield.hooks.specs import Sockets
from jackfield.testing import JackfieldServer, StartServer

FEW: dict[str, Any] = {"max_plugin_failures": 2}
QUICK = {"hook_seconds": 0.2, "slow_hook_seconds": 0.2, **FEW}
LONG = "word " * 1000
"""More than the scripted model's context has room for, together with an answer."""

AT_START = (
    "configure",
    "register_tool_parsers",
    "register_backends",
    "register_metrics",
    "token_signals",
    "register_routes",
    "open_paths",
    "register_middleware",
    "startup",
)
PER_REQUEST = (
    "transform_request",
    "compress_context",
    "score_confidence",
    "transform_response",
    "log_record",
    "on_event",
    "observe_tokens",
    "transform_delta",
)
ELSEWHERE = {
    "authenticate": "fails closed",
    "shutdown": "at the end",
    "select_backend": "with other backends",
    "register_commands": "test_discovery.py",
    "register_model_sources": "test_discovery.py",
    "prepare_model": "test_engine_hooks.py",
    "logits_processors": "test_engine_hooks.py",
    "make_sampler": "test_engine_hooks.py",
}


def test_no_hook_is_forgotten() -> None:
    hooks = {name for name in vars(Sockets) if not name.startswith("_")}
    assert {*AT_START, *PER_REQUEST, *ELSEWHERE} == hooks


def implementing(hook: str, behaviour: Callable[..., Any], **more: Callable[..., Any]) -> object:
    """A plugin with that one hook, and perhaps others."""
    functions = {hook: behaviour, **more}
    return type("Plugin", (), {name: hookimpl(staticmethod_like(found)) for name, found in functions.items()})()


def staticmethod_like(function: Callable[..., Any]) -> Callable[..., Any]:
    if asyncio.iscoroutinefunction(function):

        async def run(self: object) -> Any:
            return await function()

        return run
    return lambda self: function()


@contextmanager
def hanging() -> Iterator[Callable[[], None]]:
    """A function that does not return before the context ends."""
    released = threading.Event()
    try:
        yield lambda: released.wait(60) and None
    finally:
        released.set()


def raising() -> None:
    raise ValueError("no")


async def raising_async() -> None:
    raise ValueError("no")


async def hanging_async() -> None:
    await asyncio.sleep(3600)


async def stubborn() -> None:
    """Does not let itself be cancelled."""
    for _ in range(15):
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            continue


def limits(behaviour: Callable[..., Any]) -> dict[str, Any]:
    """What fails at once needs no short time limit, which others might exceed where a machine is busy."""
    return FEW if behaviour in (raising, raising_async, raises_at_once, fails_at_once) else QUICK


class Good:
    """Does at every hook what it is there for."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.seen = 0

    @hookimpl
    def token_signals(self) -> set[str]:
        return {"logprob"}

    @hookimpl
    def register_routes(self) -> list[Route]:
        return [Route("/good", lambda request: PlainTextResponse("good"))]

    @hookimpl
    def log_record(self, record: Any) -> None:
        self.told.append(record.kind)

    @hookimpl
    def on_event(self, event: Event) -> None:
        self.told.append(event.kind)

    @hookimpl
    def observe_tokens(self, tokens: Any) -> None:
        self.seen += len(tokens)

    @hookimpl
    def score_confidence(self) -> Confidence:
        return Confidence(0.5, "medium")

    @hookimpl
    def transform_delta(self, delta: TextDelta) -> TextDelta:
        return TextDelta(delta.choice, delta.text.upper())

    @hookimpl
    def transform_response(self, response: dict[str, Any]) -> dict[str, Any]:
        response["choices"][0]["message"]["content"] += "!"
        return response

    @hookimpl
    def transform_request(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "seed": 5}

    @hookimpl(trylast=True)
    def compress_context(self, messages: list[dict[str, Any]]) -> Compressed:
        return Compressed([{**messages[-1], "content": "short"}], {"dropped": len(messages) - 1})


def report(server: JackfieldServer, name: str) -> dict[str, Any]:
    reply = server.get("/v1/plugins")
    validator("PluginList").validate(reply.json)
    return next(plugin for plugin in reply.json["data"] if plugin["name"] == name)


def ask(server: JackfieldServer, content: str = "Hi") -> None:
    """Two requests that reach every hook."""
    for stream in (False, True):
        server.says("Hello")
        reply = server.chat(content, stream=stream, jackfield=True)
        assert reply.content == ("HELLO" if stream else "Hello!")
        assert reply.extension["choices"][0]["confidence"]["good"]["score"] == 0.5


# --- While requests are answered -------------------------------------------------------------------------------------


FAULTS = [
    pytest.param(hook, behaviour, id=f"{hook}-{behaviour.__name__}")
    for hook in PER_REQUEST
    for behaviour in (raising, raising_async, hanging_async, stubborn)
    # A plain function by contract.
    if hook != "observe_tokens" or behaviour is raising
]


@pytest.mark.parametrize(("hook", "behaviour"), FAULTS)
def test_requests_are_answered_all_the_same(
    jackfield_server: StartServer, hook: str, behaviour: Callable[..., Any]
) -> None:
    check_isolation(jackfield_server, hook, behaviour)


@pytest.mark.parametrize("hook", PER_REQUEST)
def test_requests_are_answered_though_a_plain_function_hangs(jackfield_server: StartServer, hook: str) -> None:
    with hanging() as hang:
        check_isolation(jackfield_server, hook, hang)


def check_isolation(start: StartServer, hook: str, behaviour: Callable[..., Any]) -> None:
    good = Good()
    server = start(("good", good), ("bad", implementing(hook, behaviour)), may_fail=True, **limits(behaviour))
    content = LONG if hook == "compress_context" else "Hi"

    def disabled() -> bool:
        ask(server, content)
        return server.hooks.named("bad").state == "disabled"

    server.wait_until(disabled)
    assert report(server, "bad")["failures"] >= 2
    assert hook in report(server, "bad")["errors"][0]
    event = server.event("plugin_disabled")
    assert event.data["plugin"] == "bad"
    assert report(server, "good")["state"] == "active"
    assert report(server, "good")["failures"] == 0
    assert {"completed", "first_token", "plugin_disabled"} <= set(good.told)
    server.wait_until(lambda: good.seen >= 10)
    calls = report(server, "bad")["calls"]
    ask(server, content)
    assert report(server, "bad")["calls"] == calls


WRONG: dict[str, Any] = {
    "transform_request": lambda: {"model": "scripted", "messages": "no"},
    "compress_context": lambda: Compressed([{"role": "nobody", "content": "x"}]),
    "score_confidence": lambda: Confidence(1.5, "certain"),
    "transform_response": lambda: {"id": "only"},
    "transform_delta": lambda: "text",
}


@pytest.mark.parametrize("hook", WRONG)
def test_an_answer_that_the_hook_does_not_allow_is_a_failure(jackfield_server: StartServer, hook: str) -> None:
    bad = implementing(hook, WRONG[hook])
    server = jackfield_server(("good", Good()), ("bad", bad), may_fail=True, **FEW)
    for _ in range(3):
        ask(server, LONG if hook == "compress_context" else "Hi")
    assert report(server, "bad")["state"] == "disabled"


def test_a_plugin_may_refuse_a_request(jackfield_server: StartServer) -> None:
    def refuse() -> None:
        raise InvalidRequestError("Not today.", param="messages", suggestions=("Ask tomorrow.",))

    server = jackfield_server(("p", implementing("transform_request", refuse)))
    for _ in range(6):
        reply = server.chat("Hi")
        assert reply.status == 400
        assert reply.json["error"]["message"] == "Not today."
    assert report(server, "p")["failures"] == 0


def test_failures_count_only_in_a_row(jackfield_server: StartServer) -> None:
    turns = iter(range(100))

    def every_second_time() -> None:
        if next(turns) % 2:
            raise ValueError("no")

    bad = implementing("transform_request", every_second_time)
    server = jackfield_server(("bad", bad), may_fail=True, **FEW)
    for _ in range(10):
        server.chat("Hi")
    assert report(server, "bad")["state"] == "active"
    assert report(server, "bad")["failures"] == 5


def test_a_slow_plain_function_holds_up_its_own_plugin_only_until_it_returns(jackfield_server: StartServer) -> None:
    """It is left behind when it hangs, and what waited behind it goes on in another thread."""
    threads: list[str] = []
    with hanging() as hang:
        first = iter([hang])

        def transform() -> None:
            threads.append(threading.current_thread().name)
            next(first, lambda: None)()

        bad = implementing("transform_request", transform)
        server = jackfield_server(("bad", bad), may_fail=True, **QUICK)
        for _ in range(3):
            server.chat("Hi")
    assert len(threads) == 3
    assert report(server, "bad")["failures"] == 1


# --- When the server starts and ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", AT_START)
def test_the_server_starts_without_a_plugin_that_fails(jackfield_server: StartServer, hook: str) -> None:
    check_start(jackfield_server, hook, raising)


@pytest.mark.parametrize("hook", AT_START)
def test_the_server_starts_without_a_plugin_that_hangs(jackfield_server: StartServer, hook: str) -> None:
    with hanging() as hang:
        check_start(jackfield_server, hook, hang)


def check_start(start: StartServer, hook: str, behaviour: Callable[..., Any]) -> None:
    heard: list[str] = []
    bad = implementing(hook, behaviour, log_record=lambda: heard.append("record"))
    server = start(("good", Good()), ("bad", bad), may_fail=True, **limits(behaviour))
    ask(server)
    assert server.get("/good").text == "good"
    assert report(server, "bad")["state"] == "failed"
    assert report(server, "good")["state"] == "active"
    assert not heard


@pytest.mark.parametrize("behaviour", [raising, hanging_async, stubborn], ids=lambda f: f.__name__)
def test_the_server_ends_though_a_plugin_does_not(jackfield_server: StartServer, behaviour: Callable[..., Any]) -> None:
    ended: list[str] = []
    good = implementing("shutdown", lambda: ended.append("good"))
    server = jackfield_server(
        ("good", good), ("bad", implementing("shutdown", behaviour)), may_fail=True, **limits(behaviour)
    )
    server.stop()
    assert ended == ["good"]
    assert server.hooks.named("bad").errors


# --- Letting requests in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [raising, hanging_async, lambda: "me"], ids=["raising", "hanging", "wrong"])
def test_nobody_gets_in_while_the_plugin_that_lets_them_in_fails(
    jackfield_server: StartServer, behaviour: Callable[..., Any]
) -> None:
    server = jackfield_server(("bad", implementing("authenticate", behaviour)), may_fail=True, **limits(behaviour))
    for _ in range(4):
        reply = server.chat("Hi")
        assert reply.status == 503
        assert reply.json["error"]["code"] == "authentication_failed"
        validator("ErrorEnvelope").validate(reply.json)
    assert server.get("/health").status == server.get("/ready").status == 200
    assert server.hooks.named("bad").state == "active"


def test_a_plugin_that_lets_requests_in_and_cannot_start_keeps_the_server_from_starting(
    jackfield_server: StartServer,
) -> None:
    bad = implementing("startup", raising, authenticate=lambda: Identity("anyone"))
    with pytest.raises(ConfigurationError, match="cannot start"):
        jackfield_server(("bad", bad), may_fail=True, **FEW)


KEYS = {
    "Bearer user": Identity("user", priority=7),
    "Bearer root": Identity("root", frozenset({"admin"})),
    "Bearer watch": Identity("watch", frozenset({"metrics"})),
}


class Door:
    """Knows a few keys."""

    @hookimpl
    def authenticate(self, request: Any) -> Identity | None:
        return KEYS.get(request.headers.get("authorization"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [("user", [200, 403, 403]), ("root", [200, 200, 200]), ("watch", [403, 200, 403]), ("x", [401] * 3)],
)
def test_keys_open_what_they_are_for(jackfield_server: StartServer, key: str, expected: list[int]) -> None:
    server = jackfield_server(("door", Door()))
    headers = {"Authorization": f"Bearer {key}"}
    replies = [server.get(path, headers=headers) for path in ("/v1/models/scripted", "/metrics", "/v1/plugins")]
    assert [reply.status for reply in replies] == expected
    for reply in replies:
        if reply.status != 200:
            validator("ErrorEnvelope").validate(reply.json)
        assert reply.headers["x-request-id"]


def opening(*paths: str) -> object:
    """A plugin with a page that wants these paths to be open."""

    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("page")

    routes = [Route("/page", page, methods=["GET", "POST"]), Route("/page/data", page)]
    return implementing("open_paths", lambda: paths, register_routes=lambda: routes)


def test_a_page_that_is_open_needs_no_key(jackfield_server: StartServer) -> None:
    server = jackfield_server(("door", Door()), ("pages", opening("/page")))
    assert server.get("/page").text == "page"
    assert server.request("HEAD", "/page").status == 200
    closed = [server.post("/page"), *map(server.get, ("/page/", "/page/data", "//page", "/v1/page", "/Page"))]
    assert [reply.status for reply in closed] == [401] * 6
    assert server.get("/page/data", headers={"Authorization": "Bearer root"}).text == "page"


@pytest.mark.parametrize("path", ["/good", "/v1/models", "/metrics", "/page/", "/page*", ""])
def test_nobody_opens_what_is_not_theirs(jackfield_server: StartServer, path: str) -> None:
    with pytest.raises(ConfigurationError, match="wants to open"):
        jackfield_server(("door", Door()), ("good", Good()), ("pages", opening(path)))


def test_a_keys_priority_is_added_to_the_requests(jackfield_server: StartServer) -> None:
    server = jackfield_server(("door", Door()))
    server.chat("Hi", headers={"Authorization": "Bearer user"}, priority=-2)
    assert server.requests[-1].priority == 5


# --- What plugins may do ---------------------------------------------------------------------------------------------


def test_plugins_are_called_in_their_order(jackfield_server: StartServer) -> None:
    def adds(mark: str, **options: bool) -> object:
        def transform_delta(self: object, delta: TextDelta) -> TextDelta:
            return TextDelta(delta.choice, delta.text + mark)

        return type("Adds", (), {"transform_delta": hookimpl(**options)(transform_delta)})()

    server = jackfield_server(
        ("a", adds("a")), ("b", adds("b", trylast=True)), ("c", adds("c", tryfirst=True)), ("d", adds("d"))
    )
    server.says("-")
    # As pluggy has it: the first to be called is the last that was plugged in.
    assert server.chat("Hi", stream=True).content == "-cdab"


def test_two_plugins_of_one_name_are_refused(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError, match="Two plugins are called 'twin'"):
        jackfield_server(("twin", Good()), ("twin", Good()))


def test_a_path_that_is_taken_is_refused(jackfield_server: StartServer) -> None:
    for path in ("/good", "/v1/models"):
        routes = implementing("register_routes", lambda path=path: [Route(path, raising)])
        with pytest.raises(ConfigurationError, match=f"wants to serve GET {path}"):
            jackfield_server(("good", Good()), ("bad", routes))


def test_a_name_of_what_others_bring_already_is_refused(jackfield_server: StartServer) -> None:
    class Parser:
        @hookimpl
        def register_tool_parsers(self, register: Callable[..., None]) -> None:
            register("mine", lambda names: None)

    with pytest.raises(ConfigurationError, match="brings 'mine', which is there already"):
        jackfield_server(("one", Parser()), ("two", Parser()))


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: str = "red"
    secret: SecretStr = SecretStr("s3cret")


class Configured:
    @hookimpl
    def configure(self) -> type[BaseModel]:
        return Options

    @hookimpl
    async def startup(self, server: Any, config: Options) -> None:
        self.config = config
        self.server = server


def test_settings_reach_their_plugin_and_secrets_are_masked(jackfield_server: StartServer) -> None:
    server = jackfield_server(("p", Configured()), settings={"p": {"colour": "blue", "secret": "hidden"}})
    assert server.plugin("p").config.secret.get_secret_value() == "hidden"
    assert report(server, "p")["settings"] == {"colour": "blue", "secret": "**********"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": {"color": "blue"}}, r"Unknown setting 'color' in \[plugins.p\]"),
        ({"p": {"colour": 5}}, r"Setting 'colour' in \[plugins.p\] is wrong"),
        ({"q": {"a": 1}}, r"Plugin q has no settings"),
    ],
)
def test_wrong_settings_are_refused(jackfield_server: StartServer, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        jackfield_server(("p", Configured()), ("q", Good()), settings=settings)


def test_a_wrong_settings_hint_has_the_nearest_name(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError) as caught:
        jackfield_server(("p", Configured()), settings={"p": {"color": "blue"}})
    assert caught.value.suggestions == ("Did you mean 'colour'?",)


def test_options_for_a_plugin_that_is_not_there_are_refused(jackfield_server: StartServer) -> None:
    server = jackfield_server(("p", Configured()))
    reply = server.chat("Hi", jackfield={"q": {}})
    assert reply.status == 400
    assert reply.json["error"]["param"] == "jackfield.q"
    assert "p" in reply.json["error"]["suggestions"][0]
    assert server.chat("Hi", jackfield={"p": {"x": 1}}).extension["choices"]


def test_a_hook_that_does_not_exist_is_told(jackfield_server: StartServer) -> None:
    server = jackfield_server(("bad", implementing("on_evnet", raising)), may_fail=True)
    assert report(server, "bad")["state"] == "failed"
    assert "'on_evnet'" in report(server, "bad")["errors"][0]


def test_a_hook_cannot_be_wrapped(jackfield_server: StartServer) -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def on_event(self) -> Iterator[None]:
            yield

    server = jackfield_server(("bad", Wraps()), may_fail=True)
    assert "wrapped" in report(server, "bad")["errors"][0]


# --- Compression -----------------------------------------------------------------------------------------------------


def test_a_conversation_that_is_too_long_is_compressed_and_the_answer_says_so(jackfield_server: StartServer) -> None:
    server = jackfield_server(("good", Good()))
    server.says("Hello")
    reply = server.chat(LONG, jackfield=True)
    compression = reply.extension["compression"]
    validator("Extension").validate(reply.extension)
    assert compression["plugin"] == "good"
    assert compression["report"] == {"dropped": 0}
    assert compression["tokens_before"] > 4096 > compression["tokens_after"] == reply.json["usage"]["prompt_tokens"]
    assert server.record("completed").data["compression"] == compression


def test_a_conversation_that_fits_is_left_alone(jackfield_server: StartServer) -> None:
    server = jackfield_server(("good", Good()))
    server.says("Hello")
    assert "compression" not in server.chat("word " * 500, jackfield=True).extension


def test_a_budget_of_ones_own(jackfield_server: StartServer) -> None:
    server = jackfield_server(("good", Good()), context_budget=100)
    server.says("Hello")
    assert server.chat("word " * 30, jackfield=True).extension["compression"]["tokens_before"] > 100


def test_what_is_still_too_long_is_400(jackfield_server: StartServer) -> None:
    useless = implementing("compress_context", lambda: Compressed([{"role": "user", "content": LONG}]))
    server = jackfield_server(("useless", useless))
    reply = server.chat([{"role": "user", "content": "a"}, {"role": "user", "content": LONG}])
    assert reply.json["error"]["code"] == "context_length_exceeded"


def test_the_compressor_counts_as_the_server_does(jackfield_server: StartServer) -> None:
    counted: list[int] = []

    class Counts:
        @hookimpl
        def compress_context(self, messages: Any, tools: Any, tokenizer: Any, budget: int) -> Compressed:
            counted.extend(
                [budget, tokenizer.count(messages, tools), len(tokenizer.encode(tokenizer.decode([65, 66])))]
            )
            return Compressed(messages[-1:])

    server = jackfield_server(("counts", Counts()))
    server.says("ok")
    reply = server.chat([{"role": "user", "content": LONG}, {"role": "user", "content": "b"}], jackfield=True)
    assert counted == [3072, reply.extension["compression"]["tokens_before"], 2]


# --- Middleware ------------------------------------------------------------------------------------------------------


def middleware(call: Callable[..., Any]) -> object:
    class Layer:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await call(self.app, scope, receive, send)

    return implementing("register_middleware", lambda: [Middleware(Layer)])


async def raises_at_once(app: Any, scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("no")


async def hangs_at_once(app: Any, scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize("call", [raises_at_once, hangs_at_once], ids=lambda f: f.__name__)
def test_requests_go_past_middleware_that_fails(jackfield_server: StartServer, call: Callable[..., Any]) -> None:
    server = jackfield_server(("bad", middleware(call)), may_fail=True, **limits(call))
    for _ in range(4):
        server.says("Hello")
        assert server.chat("Hi").content == "Hello"
    assert report(server, "bad")["state"] == "disabled"
    assert report(server, "bad")["failures"] == 2


def test_middleware_that_cannot_be_made_is_passed_by(jackfield_server: StartServer) -> None:
    bad = implementing("register_middleware", lambda: [Middleware(dict, 1, 2, 3)])  # type: ignore[arg-type]
    server = jackfield_server(("bad", bad), may_fail=True, **FEW)
    server.says("Hello")
    assert server.chat("Hi").content == "Hello"
    assert report(server, "bad")["failures"] == 1


def test_middleware_may_change_and_refuse(jackfield_server: StartServer) -> None:
    async def call(app: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/closed":
            await PlainTextResponse("closed", 418)(scope, receive, send)
            return

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-marked", b"yes"))
            await send(message)

        await app(scope, receive, marked)

    server = jackfield_server(("layer", middleware(call)))
    assert server.get("/closed").status == 418
    server.says("Hello")
    reply = server.chat("Hi", stream=True)
    assert (reply.content, reply.headers["x-marked"]) == ("Hello", "yes")


def test_an_error_behind_middleware_is_not_the_middlewares(jackfield_server: StartServer) -> None:
    async def call(app: Any, scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    def fails(request: Any) -> None:
        raise RuntimeError("inside")

    routes = implementing("register_routes", lambda: [Route("/fails", fails)])
    server = jackfield_server(("layer", middleware(call)), ("routes", routes))
    reply = server.get("/fails")
    assert reply.status == 500
    assert reply.json["error"]["code"] == "internal_error"
    assert report(server, "layer")["failures"] == 0


def test_an_answer_that_fails_on_its_way_breaks_off(
    jackfield_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"half of it"
        raise RuntimeError("inside")

    routes = implementing("register_routes", lambda: [Route("/fails", lambda _: StreamingResponse(parts()))])
    server = jackfield_server(("routes", routes))
    with pytest.raises(IncompleteRead):
        server.get("/fails")
    (told,) = (record for record in caplog.records if record.exc_info)
    assert "Unexpected error at GET /fails, request req_" in told.getMessage()


# --- Tool parsers ----------------------------------------------------------------------------------------------------

PAINT = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object"}}}


class Shouting:
    """Calls look like ``!paint!``."""

    def __init__(self, names: frozenset[str]) -> None:
        self.text = ""

    def push(self, text: str) -> list[Any]:
        self.text += text
        if "boom" in self.text:
            raise ValueError("boom")
        return []

    def finish(self) -> list[Any]:
        return [ToolCallText("paint", "{}")] if self.text == "!paint!" else [self.text]


class Parsers:
    @hookimpl
    def register_tool_parsers(self, register: Callable[..., None]) -> None:
        register("shouting", Shouting)


def test_a_plugins_tool_parser_is_used_when_it_is_set(jackfield_server: StartServer) -> None:
    server = jackfield_server(("p", Parsers()), tool_parser="shouting")
    server.says("!paint!")
    assert server.chat("Hi", tools=[PAINT]).tool_calls[0]["function"]["name"] == "paint"


def test_a_tool_parser_that_fails_costs_no_text(jackfield_server: StartServer) -> None:
    server = jackfield_server(("p", Parsers()), tool_parser="shouting", may_fail=True)
    server.says("it goes boom and on")
    assert server.chat("Hi", tools=[PAINT]).content == "it goes boom and on"
    assert report(server, "p")["failures"] == 1


def test_a_tool_parser_that_is_not_there_is_refused(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError, match="There is no tool parser 'quiet'"):
        jackfield_server(("p", Parsers()), tool_parser="quiet")


# --- Backends --------------------------------------------------------------------------------------------------------


def backend(answer: Callable[..., AsyncIterator[str]], serves: Callable[[], bool] = lambda: True) -> object:
    class Elsewhere:
        def __init__(self, server: Any) -> None:
            self.server = server

        def serves(self, request: Any) -> bool:
            return serves()

        def answer(self, request: Any, body: dict[str, Any]) -> AsyncIterator[str]:
            return answer(body)

    class Brings:
        @hookimpl
        def register_backends(self, register: Callable[..., None]) -> None:
            register("elsewhere", Elsewhere)

        @hookimpl
        def select_backend(self, available: tuple[str, ...]) -> str | None:
            return "elsewhere" if "elsewhere" in available else None

    return Brings()


async def speaks(body: dict[str, Any]) -> AsyncIterator[str]:
    for piece in ("From ", "", body["messages"][0]["content"]):
        yield piece


async def fails_at_once(body: dict[str, Any]) -> AsyncIterator[str]:
    raise OSError("unplugged")
    yield ""


async def hangs(body: dict[str, Any]) -> AsyncIterator[str]:
    await asyncio.sleep(3600)
    yield ""


async def fails_later(body: dict[str, Any]) -> AsyncIterator[str]:
    yield "Half"
    raise OSError("unplugged")


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_answers_when_it_is_chosen(jackfield_server: StartServer, stream: bool) -> None:
    server = jackfield_server(("b", backend(speaks)))
    reply = server.chat("afar", stream=stream, jackfield=True)
    assert reply.content == "From afar"
    assert reply.extension["backend"] == "elsewhere"
    validator("Extension").validate(reply.extension)
    assert server.record("backend").data == {"backend": "elsewhere", "reason": "chosen by plugin b"}
    assert server.record("completed").data["completion_tokens"] == 9
    assert not server.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answer", [fails_at_once, hangs], ids=lambda f: f.__name__)
def test_the_engine_answers_when_a_backend_cannot(
    jackfield_server: StartServer, answer: Callable[..., Any], stream: bool
) -> None:
    server = jackfield_server(("b", backend(answer)), may_fail=True, **limits(answer))
    server.says("Hello")
    reply = server.chat("Hi", stream=stream, jackfield=True)
    assert reply.content == "Hello"
    assert reply.extension["backend"] == "mlx"
    assert server.record("fallback").data["from"] == "elsewhere"
    assert server.event("backend_fallback").data["to"] == "mlx"
    assert report(server, "b")["failures"] == 1


def test_what_a_backend_cannot_do_is_done_here(jackfield_server: StartServer) -> None:
    server = jackfield_server(("b", backend(speaks)))
    for _ in range(2):
        server.says("Hello")
    assert server.chat("Hi", n=2).content_of(1) == "Hello"


def test_a_backend_that_fails_in_the_middle_ends_the_answer(jackfield_server: StartServer) -> None:
    server = jackfield_server(("b", backend(fails_later)), may_fail=True)
    reply = server.chat("Hi", stream=True)
    assert reply.content == "Half"
    assert [one["error"]["code"] for one in reply.chunks if "error" in one] == ["upstream_error"]
    assert server.chat("Hi").status == 502
    assert "unplugged" not in server.record("failed").data["message"]


@pytest.mark.parametrize("behaviour", [raising, hanging_async, lambda: "nobody"], ids=["raises", "hangs", "wrong"])
def test_the_engine_answers_when_nobody_can_choose(jackfield_server: StartServer, behaviour: Any) -> None:
    bad = implementing("select_backend", behaviour)
    idle = backend(speaks)
    del type(idle).select_backend
    server = jackfield_server(("b", idle), ("bad", bad), may_fail=True, **limits(behaviour))
    for _ in range(3):
        server.says("Hello")
        assert server.chat("Hi").content == "Hello"
    assert report(server, "bad")["state"] == "disabled"


def test_a_backend_that_cannot_say_whether_it_serves_does_not(jackfield_server: StartServer) -> None:
    server = jackfield_server(("b", backend(speaks, raising)), may_fail=True)
    server.says("Hello")
    assert server.chat("Hi").content == "Hello"
    assert report(server, "b")["failures"] == 1


# --- Ids, records, events --------------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id(jackfield_server: StartServer) -> None:
    server = jackfield_server()
    for reply in (server.chat("Hi"), server.get("/v1/models"), server.get("/nothing"), server.chat([])):
        assert re.fullmatch(r"req_\d{10}_[0-9a-f]{8}", reply.headers["x-request-id"])
    assert server.get("/health", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    for insane in ("a b", "x" * 129, ""):
        own = server.get("/health", headers={"X-Request-ID": insane}).headers["x-request-id"]
        assert own.startswith("req_")


def test_the_stations_of_a_request_are_told_in_order(jackfield_server: StartServer) -> None:
    server = jackfield_server(("good", Good()))
    server.says("Hello", cached_tokens=3)
    reply = server.chat("secret question", headers={"X-Request-ID": "r1"})
    server.record("completed")
    assert [record.kind for record in server.records] == ["received", "backend", "first_token", "completed"]
    assert {record.request.id for record in server.records} == {"r1"}
    received, _, first, completed = (record.data for record in server.records)
    assert received["prompt_tokens"] == completed["prompt_tokens"] == reply.json["usage"]["prompt_tokens"]
    assert received["roles"] == {"user": 1}
    assert first["cached_tokens"] == completed["cached_tokens"] == 3
    assert completed["confidence"] == [{"good": {"score": 0.5, "label": "medium", "factors": {}}}]
    told = str(server.records) + str(server.events)
    assert "secret" not in told
    assert "Hello" not in told


def test_failures_and_hang_ups_are_told(jackfield_server: StartServer) -> None:
    server = jackfield_server()
    assert server.chat([]).status == 400
    assert server.record("failed").data["status"] == 400
    assert server.event("failed").level == "warning"
    server.says("Hello")
    with server.held():
        with server.streaming("Hi") as chunks:
            next(chunks)
            next(chunks)
        server.event("cancelled")
    assert server.event("cancelled").request_id == server.record("cancelled").request.id


def test_requests_that_get_nowhere_are_told_too(jackfield_server: StartServer) -> None:
    server = jackfield_server(("door", Door()))
    headers = {"Authorization": "Bearer root", "X-Request-ID": "lost"}
    assert server.get("/nothing", headers=headers).status == 404
    lost = server.record("failed")
    assert (lost.request.id, lost.request.endpoint, lost.data["status"]) == ("lost", "/nothing", 404)
    assert lost.request.identity == KEYS["Bearer root"]
    assert server.get("/v1/models").status == 401
    server.wait_until(lambda: server.record("failed").data["status"] == 401)


def test_a_slow_first_token_is_an_event(jackfield_server: StartServer) -> None:
    server = jackfield_server(slow_seconds=0.000001)
    server.chat("Hi")
    assert server.event("slow").data["first_token_seconds"] > 0


# --- The server, for plugins -----------------------------------------------------------------------------------------


def test_a_plugin_may_look_around_and_ask_the_model(jackfield_server: StartServer) -> None:
    class Curious(Configured):
        @hookimpl
        def register_routes(self, server: Any) -> list[Route]:
            async def answer(request: Any) -> PlainTextResponse:
                server.emit(Event("mine", "info", "Something of mine."))
                return PlainTextResponse(await server.complete([{"role": "user", "content": "Hi"}], max_tokens=5))

            return [Route("/ask", answer)]

    server = jackfield_server(("p", Curious()), ("good", Good()))
    server.says("Hello, you")
    assert server.get("/ask").text == "Hello"
    assert server.requests[-1].priority > 0
    assert server.event("mine").title == "Something of mine."
    assert [record.kind for record in server.records] == []
    own = server.plugin("p").server
    assert own.url == server.url
    assert own.data_dir.is_dir()
    assert own.data_dir.name == "p"
    server.engine.statistics.cached_tokens.update(memory=32, disk=16)
    (model,) = own.models()
    assert (model.id, model.state) == ("scripted", "ready")
    assert model.statistics["cached_tokens"] == {"memory": 32, "disk": 16}
    assert {plugin["name"] for plugin in own.plugins()} >= {"p", "good"}


def test_the_metrics_tell_what_plugins_cost(jackfield_server: StartServer) -> None:
    server = jackfield_server(("bad", implementing("transform_request", raising)), may_fail=True)
    server.chat("Hi")
    text = server.get("/metrics").text
    assert 'jackfield_plugin_calls_total{hook="transform_request",plugin="bad"} 1.0' in text
    assert 'jackfield_plugin_failures_total{hook="transform_request",plugin="bad"} 1.0' in text


def test_signals_do_not_change_what_clients_see(jackfield_server: StartServer) -> None:
    seen: list[Any] = []

    class Sees:
        @hookimpl
        def token_signals(self) -> set[str]:
            return {"logprob", "entropy", "top_k"}

        @hookimpl
        def observe_tokens(self, tokens: Any) -> None:
            seen.extend(tokens)

    server = jackfield_server(("sees", Sees()))
    for fields in ({}, {"logprobs": True, "top_logprobs": 2}):
        server.says("Hello", logprob=-0.5, entropy=0.25)
        choice = server.chat("Hi", **fields).json["choices"][0]
        if fields:
            assert {len(token["top_logprobs"]) for token in choice["logprobs"]["content"]} == {2}
        else:
            assert choice["logprobs"] is None
    server.wait_until(lambda: len(seen) == 10)
    assert {(token.logprob, token.entropy, len(token.top)) for token in seen} == {(-0.5, 0.25, 20)}


def test_nothing_is_computed_that_nobody_wants(jackfield_server: StartServer) -> None:
    server = jackfield_server()
    server.chat("Hi")
    (request,) = server.requests
    assert (request.top_logprobs, request.entropy, request.prepare) == (None, False, None)


def test_the_official_document_takes_an_answer_without_the_extension(jackfield_server: StartServer) -> None:
    server = jackfield_server(("good", Good()))
    reply = httpx2.post(
        f"{server.url}/v1/chat/completions",
        json={"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]},
    )
    assert "jackfield" not in reply.json()
