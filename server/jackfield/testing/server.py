"""The real application on a free port, over the scripted engine."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import uvicorn
from starlette.applications import Starlette

from jackfield import settings as configuration
from jackfield.app import create_app
from jackfield.engine.request import CacheUse, EngineEvent, FinishEvent, FinishReason, GenerationRequest, StartEvent
from jackfield.errors import JackfieldError
from jackfield.hooks import Event, LogRecord
from jackfield.hooks.calls import Hooks
from jackfield.hooks.discovery import given
from jackfield.hooks.specs import PROJECT
from jackfield.models.embedding import EmbeddingSpec
from jackfield.models.lineup import remote_entries
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.security.keyring import Keyring
from jackfield.testing.engine import WIDTH, Script, ScriptedEngine, script, tokens
from jackfield.testing.recorder import NAME, WAIT_SECONDS, Recorder
from jackfield.testing.reply import JsonObject, Reply
from jackfield.testing.tokenizer import VOCABULARY

if TYPE_CHECKING:
    from jackfield.engine.thread import Engine

MODEL = "scripted"
CONTEXT_LENGTH = 4096
UNASKED = "Nobody told me what to say."

Messages = str | Sequence[Mapping[str, Any]]
"""A conversation; a string is what the user says."""

Answer = Callable[[str], str]
"""From a prompt to what the model says."""


class StartServer(Protocol):
    """What the fixture ``jackfield_server`` is."""

    def __call__(
        self,
        *plugins: str | tuple[str, object],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        may_fail: bool = False,
        **server_settings: Any,
    ) -> "JackfieldServer":
        """Start a server, which ends with the test.

        Args:
            plugins: names of installed plugins, or names with the objects that are to be plugged in; no others are.
            settings: of plugins, by name: what ``[plugins.NAME]`` says in a file.
            may_fail: otherwise a plugin that fails fails the test, when the server starts or when it ends.
            server_settings: the server's own, such as ``tool_parser="mine"``.

        Raises:
            ConfigurationError: a setting is wrong.
            AssertionError: a plugin could not be started.
        """


class JackfieldServer:
    """A server that says what it is told to. Its methods are for the test's thread."""

    def __init__(
        self, running: "_Running", engine: ScriptedEngine, tokenizer: Tokenizer, hooks: Hooks, recorder: Recorder
    ) -> None:
        self.url = running.url
        """Where it is reached, without ``/v1``."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.hooks = hooks
        self._recorder = recorder
        self._running = running

    # --- What the model says ---------------------------------------------------------------------------------------

    def says(
        self,
        text: str,
        *,
        logprob: float | Sequence[float] = -0.1,
        entropy: float | Sequence[float] = 0.3,
        finish: FinishReason = "stop",
        error: JackfieldError | None = None,
        seconds_per_token: float = 0.0,
        cached_tokens: int = 0,
    ) -> None:
        """Answer the next choice of a request like this; called again, the one after it.

        Args:
            text: a token for each of its bytes.
            logprob: of each token, natural; or one for all of them.
            entropy: the same, in nats.
            finish: why it ends.
            error: what the engine fails with after the text.
            seconds_per_token: a pause before each.
            cached_tokens: how many of the prompt the prefix cache had.
        """
        said = tokens(self.tokenizer.encode(text), logprob, entropy)
        start = StartEvent(0.0, CacheUse(cached_tokens, miss="new"))
        end = FinishEvent("error", error) if error else FinishEvent(finish)
        self.engine.scripts.append(script(said, start, end, seconds_per_token))

    def plays(self, steps: Sequence[Sequence[EngineEvent]]) -> None:
        """Answer the next choice of a request with just these events of the engine, step by step."""
        self.engine.scripts.append(Script(steps))

    def answers(self, answer: Answer) -> None:
        """Answer what nothing was told for with what ``answer`` makes of the prompt: a model for whole conversations.

        The prompt is the text that the chat template wrote, with the tools of the request, calls and their results. It
        is called on the event loop; when it raises, the request fails.
        """
        self.engine.default = lambda request: _saying(self.tokenizer, answer(self._prompt(request)))

    def _prompt(self, request: GenerationRequest) -> str:
        return self.tokenizer.decode(request.prompt, special=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Answers wait after their first token until this context ends; begin it before you ask."""
        self._running.do(self.engine.going.clear)
        try:
            yield
        finally:
            self._running.do(self.engine.going.set)

    # --- What clients ask --------------------------------------------------------------------------------------------

    def chat(self, messages: Messages, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
        """Ask ``/v1/chat/completions``; ``fields`` are the request's, such as ``stream=True``."""
        return self.request("POST", "/v1/chat/completions", _conversation(messages) | fields, headers)

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Reply:
        """What is there."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Reply:
        """Send ``body`` there, as JSON."""
        return self.request("POST", path, body, headers)

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Ask over HTTP, as a client would; ``body`` goes out as JSON."""
        with closing(self._connect()) as connection:
            response = _send(connection, method, path, body, headers)
            return Reply(response.status, _lower(response), response.read().decode())

    @contextmanager
    def streaming(
        self, messages: Messages, *, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> Iterator[Iterator[JsonObject]]:
        """The chunks of an answer as they come; leaving the context hangs up, and the work stops."""
        body = _conversation(messages) | {"stream": True} | fields
        with closing(self._connect()) as connection:
            response = _send(connection, "POST", "/v1/chat/completions", body, headers)
            if response.status != 200:
                raise AssertionError(f"the server answered {response.status}: {response.read().decode()}")
            with response:
                lines = (line.decode() for line in response)
                yield (json.loads(line[6:]) for line in lines if line.startswith("data: {"))

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=WAIT_SECONDS)

    # --- What has happened -------------------------------------------------------------------------------------------

    @property
    def requests(self) -> list[GenerationRequest]:
        """What the engine was asked, one for each choice, with what plugins have added."""
        return self.engine.requests

    @property
    def events(self) -> list[Event]:
        """All that plugins were told with ``on_event``; those that are on their way come later."""
        return self._recorder.events

    @property
    def records(self) -> list[LogRecord]:
        """All that plugins were told with ``log_record``; those that are on their way come later."""
        return self._recorder.records

    def event(self, kind: str, request_id: str | None = None) -> Event:
        """The last event of this kind, perhaps of one request; waits for it if there is none yet.

        Raises:
            AssertionError: none came in a minute.
        """

        def wanted(event: Event) -> bool:
            return event.kind == kind and request_id in (None, event.request_id)

        return self._recorder.wait_for(self.events, wanted, f"the event {kind!r}")

    def record(self, kind: str, request_id: str | None = None) -> LogRecord:
        """The last record of this kind, perhaps of one request; waits for it if there is none yet.

        Raises:
            AssertionError: none came in a minute.
        """

        def wanted(record: LogRecord) -> bool:
            return record.kind == kind and request_id in (None, record.request.id)

        return self._recorder.wait_for(self.records, wanted, f"the record {kind!r}")

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for what a plugin does by and by, off the path of answers.

        Raises:
            AssertionError: it did not come true in a minute.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not come true in {WAIT_SECONDS:g} seconds")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the server, its plugins with it; otherwise it ends with the test."""
        self._running.close()

    def plugin(self, name: str) -> Any:
        """A plugin's object, to look into."""
        found = self.hooks.named(name)
        if found is None:
            raise KeyError(name)
        return found.object

    def refuse_failures(self) -> None:
        """A plugin that fails is left out or passed over, which a test might not notice.

        Raises:
            AssertionError: one has failed.
        """
        for plugin in self.hooks.plugins:
            if plugin.active and "observe_tokens" in plugin.hooks:
                # What it has been shown may still wait for it.
                plugin.thread.submit(lambda: None, WAIT_SECONDS).result(WAIT_SECONDS)
        told = [f"{plugin.name} ({plugin.state}): {error}" for plugin in self.hooks.plugins for error in plugin.errors]
        if told:
            raise AssertionError("plugins have failed (may_fail=True allows it):\n" + "\n".join(told))


def _conversation(messages: Messages) -> JsonObject:
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return {"model": MODEL, "messages": conversation}


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: object, headers: Mapping[str, str] | None
) -> http.client.HTTPResponse:
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
    return connection.getresponse()


def _lower(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


# --- Starting and ending ---------------------------------------------------------------------------------------------


@contextmanager
def serving(
    tokenizer_folder: Path,
    *plugins: str | tuple[str, object],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    may_fail: bool = False,
    **server_settings: Any,
) -> Iterator[JackfieldServer]:
    """A server until the context ends, for fixtures that live longer than a test; the rest is as in `StartServer`.

    ``tokenizer_folder`` comes from the fixture ``jackfield_tokenizer``. Plugins keep data where ``JACKFIELD_DATA_DIR``
    says.
    """
    whole = configuration.load({**server_settings, "plugins": settings}, environment={})
    recorder, tokenizer = Recorder(), _tokenizer(tokenizer_folder)
    hooks = given([*map(_named, plugins), (NAME, recorder)], whole)
    with closing(ScriptedEngine(lambda request: _saying(tokenizer, UNASKED))) as engine:
        context_length = whole.context_length or CONTEXT_LENGTH
        spec = EmbeddingSpec(WIDTH)
        model = ServedModel(MODEL, tokenizer, cast("Engine", engine), context_length, VOCABULARY, {}, embedding=spec)
        app = create_app(whole, Registry([model, *remote_entries(whole)]), hooks, keys=Keyring(whole.keys_file))
        with closing(_Running(app)) as running:
            server = JackfieldServer(running, engine, tokenizer, hooks, recorder)
            if not may_fail:
                server.refuse_failures()
            yield server
    if not may_fail:
        server.refuse_failures()


@cache
def _tokenizer(folder: Path) -> Tokenizer:
    """One for all servers of a run: it takes longer to make than a server."""
    return Tokenizer(folder)


def _named(plugin: str | tuple[str, object]) -> tuple[str, object]:
    if not isinstance(plugin, str):
        return plugin
    points = entry_points(group=PROJECT, name=plugin)
    if not points:
        installed = ", ".join(sorted(entry_points(group=PROJECT).names)) or "none"
        raise AssertionError(f"no plugin {plugin!r} is installed (pip install -e . does it); there are: {installed}")
    return plugin, next(iter(points)).load()


def _saying(tokenizer: Tokenizer, text: str) -> Script:
    return script(tokens(tokenizer.encode(text), -0.1, 0.3), StartEvent(0.0, CacheUse(miss="new")), FinishEvent("stop"))


LOOK_SECONDS = 0.005


class _Server(uvicorn.Server):
    """Ends at once. Its parent looks every tenth of a second whether it is to, and then waits as long for nobody."""

    async def main_loop(self) -> None:
        """Serve until it is to end."""
        ticking = asyncio.create_task(super().main_loop())
        while not self.should_exit:  # noqa: ASYNC110 - which other threads set
            await asyncio.sleep(LOOK_SECONDS)
        ticking.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for those who are still there."""
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
        for server in self.servers:
            server.close()


class _Running:
    """An application that is served by a thread of its own, once its lifespan has begun."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        # Named by number, because asyncio turns Nagle's delay off only for sockets that say so.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self.url = app.state.host.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=5)
        self._server = _Server(config)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="jackfield-testing")
        self._thread.start()
        try:
            self._loop = self._started.result()
        except BaseException:
            self.close()
            raise

    async def _serve(self) -> None:
        try:
            async with self._app.router.lifespan_context(self._app):
                self._listener.listen()
                self._started.set_result(asyncio.get_running_loop())
                await self._server.serve(sockets=[self._listener])
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            self._listener.close()

    def do(self, work: Callable[[], object]) -> None:
        """Have something done on the event loop."""
        self._loop.call_soon_threadsafe(work)

    def close(self) -> None:
        """End the server, its plugins first."""
        self._server.should_exit = True
        self._thread.join()
