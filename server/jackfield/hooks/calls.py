"""Every hook as the server calls it: what goes in, what comes back, and what a failure means."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import click
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from jackfield.errors import ConfigurationError, InvalidRequestError, UnauthorizedError, UnavailableError
from jackfield.events import Event
from jackfield.hooks.data import (
    ChatMessage,
    Compressed,
    Confidence,
    Identity,
    JsonObject,
    LogRecord,
    Outcome,
    RequestInfo,
    Signal,
    TextDelta,
    TokenEvent,
)
from jackfield.hooks.dispatcher import ESCAPES, Check, Dispatcher, Implementation, PluginError, expect
from jackfield.hooks.engine_side import EngineHooks
from jackfield.hooks.mailbox import Mailbox
from jackfield.hooks.measures import PluginRegistry
from jackfield.hooks.plugin import Plugin
from jackfield.hooks.server import Server
from jackfield.hooks.specs import Backend, ContextTokenizer, ModelSource

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SIGNALS: frozenset[Signal] = frozenset({"logprob", "entropy", "top_k"})
BACKLOG = 4096
"""Steps that wait for a plugin that observes tokens; beyond that it hears no more of them."""


class Hooks:
    """All plugins, as the server sees them.

    Args:
        plugins: all that were found, those included that could not be loaded.
        dispatcher: calls those that could.
    """

    def __init__(self, plugins: Sequence[Plugin], dispatcher: Dispatcher) -> None:
        self.plugins = tuple(plugins)
        self.engine = EngineHooks(dispatcher)
        self._dispatcher = dispatcher
        self._backend_kinds: dict[str, tuple[Plugin, Callable[..., Any]]] | None = None
        self._mail = {
            hook: [Mailbox(dispatcher, implementation) for implementation in dispatcher.of(hook)]
            for hook in ("log_record", "on_event")
        }
        self.signals = self._signals()

    def has(self, hook: str) -> bool:
        """Whether any plugin implements a hook: what is only for plugins need not be done otherwise."""
        return self._dispatcher.has(hook)

    def named(self, name: str) -> Plugin | None:
        """The plugin of that name."""
        return next((plugin for plugin in self.plugins if plugin.name == name), None)

    def reports(self) -> list[dict[str, Any]]:
        """All plugins, for people and programs."""
        return [plugin.report() for plugin in self.plugins]

    def failed(self, plugin: Plugin, hook: str, error: BaseException, seconds: float = 0.0) -> None:
        """Something that a plugin contributed through a hook has failed."""
        for implementation in self._dispatcher.of(hook):
            if implementation.plugin is plugin:
                self._dispatcher.failed(implementation, error, seconds)

    def on_disabled(self, listener: Callable[[Plugin, str], None]) -> None:
        """Hear of plugins that are disabled, and why, on any thread."""
        self._dispatcher.on_disabled = listener

    # --- When the server starts --------------------------------------------------------------------------------------

    def _signals(self) -> frozenset[Signal]:
        asked = [self._at_start(one, {}, _signals) for one in self._dispatcher.of("token_signals")]
        return frozenset().union(*(signals or () for signals in asked))

    def register_commands(self, cli: click.Group) -> None:
        """Let plugins add sub-commands."""
        for implementation in self._dispatcher.of("register_commands"):
            self._at_start(implementation, {"cli": cli})

    def model_sources(self) -> list[ModelSource]:
        """Where models come from, besides the built-in places."""
        found: list[ModelSource] = []
        for plugin, kind in self._registered("register_model_sources").values():
            try:
                found.append(kind())
            except Exception as error:
                self.failed(plugin, "register_model_sources", error)
        return found

    def tool_parsers(self, taken: Iterable[str]) -> dict[str, tuple[Plugin, Callable[..., Any]]]:
        """By name, besides the built-in ones, whose names are ``taken``, and who brings it."""
        return self._registered("register_tool_parsers", taken)

    def backend_kinds(self, taken: Iterable[str]) -> dict[str, tuple[Plugin, Callable[..., Any]]]:
        """What makes those who answer besides the ones whose names are ``taken``, by name, and who brings it."""
        if self._backend_kinds is None:
            self._backend_kinds = self._registered("register_backends", taken)
        return self._backend_kinds

    def backends(self, server: Callable[[Plugin], Server], taken: Iterable[str]) -> dict[str, tuple[Plugin, Backend]]:
        """Those who answer, see `backend_kinds`."""
        found: dict[str, tuple[Plugin, Backend]] = {}
        for name, (plugin, kind) in self.backend_kinds(taken).items():
            try:
                found[name] = plugin, kind(server(plugin))
            except Exception as error:
                self.failed(plugin, "register_backends", error)
        return found

    def _registered(self, hook: str, taken: Iterable[str] = ()) -> dict[str, tuple[Plugin, Callable[..., Any]]]:
        found: dict[str, tuple[Plugin, Callable[..., Any]]] = {}
        for implementation in self._dispatcher.of(hook):
            named: list[tuple[str, Callable[..., Any]]] = []
            self._at_start(implementation, {"register": lambda name, made, to=named: to.append((name, made))})
            for name, made in named:
                _refuse_taken(name, {*found, *taken}, implementation)
                found[name] = implementation.plugin, made
        return found

    def register_metrics(self, shared: CollectorRegistry) -> list[tuple[Plugin, CollectorRegistry]]:
        """What plugins measure, each in a registry of its own; their names must be free in ``shared``."""
        found: list[tuple[Plugin, CollectorRegistry]] = []
        for implementation in self._dispatcher.of("register_metrics"):
            plugin, registry = implementation.plugin, PluginRegistry(shared)
            self._at_start(implementation, {"registry": registry, "config": plugin.settings})
            found.append((plugin, registry))
        return found

    def routes(self, server: Callable[[Plugin], Server]) -> list[tuple[Plugin, BaseRoute]]:
        """What plugins serve."""
        return self._contributed("register_routes", server, BaseRoute)

    def open_paths(self, server: Callable[[Plugin], Server]) -> list[tuple[Plugin, str]]:
        """What of their routes plugins want to be got without a key."""
        return self._contributed("open_paths", server, str)

    def middleware(self, server: Callable[[Plugin], Server]) -> list[tuple[Plugin, Middleware]]:
        """What plugins put around all routes."""
        return self._contributed("register_middleware", server, Middleware)

    def _contributed(
        self, hook: str, server: Callable[[Plugin], Server], kind: type[Result]
    ) -> list[tuple[Plugin, Result]]:
        found: list[tuple[Plugin, Result]] = []
        for implementation in self._dispatcher.of(hook):
            plugin = implementation.plugin
            given = {"server": server(plugin), "config": plugin.settings}
            contributed = self._at_start(implementation, given, lambda a: [expect(one, kind, hook) for one in a or ()])
            found += [(plugin, one) for one in contributed or ()]
        return found

    def _at_start(
        self, implementation: Implementation, given: dict[str, Any], check: Check = lambda answer: answer
    ) -> Any:
        """What ``check`` makes of its answer; a plugin that fails now is not called again."""
        try:
            return self._dispatcher.call_and_wait(implementation, given, check)
        except Exception as error:
            return self._fail_to_start(implementation, error)

    def _fail_to_start(self, implementation: Implementation, error: Exception) -> None:
        plugin = implementation.plugin
        if "authenticate" in plugin.hooks:
            raise ConfigurationError(
                f"Plugin {plugin.name}, which lets requests in, cannot start: {error}",
                suggestions=("Mend it.", f"Serve everybody without it: --disable-plugin {plugin.name}."),
            ) from error
        if plugin.active:
            told = f"{implementation.hook}: {type(error).__name__}: {error}"
            plugin.state = "failed"
            plugin.errors.append(told)
            logger.error("Plugin %s is left out: %s", plugin.name, told)

    async def startup(self, server: Callable[[Plugin], Server]) -> None:
        """Let plugins begin; those that fail or take too long are left out."""
        for implementation in list(self._dispatcher.of("startup")):
            plugin = implementation.plugin
            try:
                await self._dispatcher.call(implementation, {"server": server(plugin), "config": plugin.settings})
            except Exception as error:
                self._fail_to_start(implementation, error)

    async def shutdown(self, server: Callable[[Plugin], Server]) -> None:
        """Let plugins read their mail and end."""
        for mailbox in (mailbox for mailboxes in self._mail.values() for mailbox in mailboxes):
            await mailbox.close(self._dispatcher.limit("on_event"))
        for implementation in self._dispatcher.of("shutdown"):
            await self._ask(implementation, {"server": server(implementation.plugin)})

    # --- Once a request ----------------------------------------------------------------------------------------------

    async def authenticate(self, request: HTTPConnection) -> Identity | None:
        """Who sends a request; None when nobody asks.

        Raises:
            UnauthorizedError: no plugin knows the sender.
            UnavailableError: a plugin failed, so that nobody can be let in.
        """
        asked = False
        for implementation in self._dispatcher.of("authenticate"):
            asked = True
            try:
                identity = await self._dispatcher.call(implementation, {"request": request}, _identity)
            except Exception as error:
                raise UnavailableError(
                    "Nobody can be let in at the moment.",
                    code="authentication_failed",
                    suggestions=("Look at the server's log: the plugin that lets requests in fails.",),
                ) from error
            if identity is not None:
                return cast(Identity, identity)
        if asked:
            raise UnauthorizedError
        return None

    async def transform_request(
        self, body: JsonObject, request: RequestInfo, check: Callable[[JsonObject], Any]
    ) -> JsonObject:
        """The request that the plugins make of it; what ``check`` refuses is not taken.

        Raises:
            InvalidRequestError: a plugin refuses it.
        """

        def checked(found: Any) -> Any:
            try:
                if found is not None:
                    check(expect(found, dict, "transform_request"))
            except InvalidRequestError as error:
                raise PluginError(error.message) from error
            return found

        for implementation in self._dispatcher.of("transform_request"):
            try:
                found = await self._dispatcher.call(implementation, {"body": body, "request": request}, checked)
            except InvalidRequestError:
                raise
            except Exception:  # noqa: S112 - counted and logged
                continue
            body = body if found is None else found
        return body

    async def compress_context(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[JsonObject],
        *,
        tokenizer: ContextTokenizer,
        budget: int,
        request: RequestInfo,
        check: Callable[[Compressed], Awaitable[Result]],
    ) -> tuple[str, Compressed, Result] | None:
        """Who made the conversation shorter, how, and what ``check`` made of it; None if nobody did."""
        given = {
            "messages": messages,
            "tools": tools,
            "tokenizer": tokenizer,
            "budget": budget,
            "model": request.model,
            "request": request,
        }

        async def checked(found: Any) -> tuple[Compressed, Result]:
            compressed = _compressed(found)
            return compressed, await check(compressed)

        for implementation in self._dispatcher.of("compress_context"):
            found = await self._ask(implementation, given, checked)
            if found is not None:
                return implementation.plugin.name, *found
        return None

    async def select_backend(self, request: RequestInfo, available: Sequence[str]) -> tuple[str, str] | None:
        """Which of ``available`` is to answer, and whose choice that is; None leaves it to the server."""
        given = {"request": request, "available": tuple(available)}
        for implementation in self._dispatcher.of("select_backend"):
            name = await self._ask(implementation, given, lambda name: _one_of(name, available))
            if name is not None:
                return name, implementation.plugin.name
        return None

    async def score_confidence(
        self, request: RequestInfo, tokens: Sequence[TokenEvent], text: str, outcome: Outcome
    ) -> dict[str, Confidence]:
        """What each plugin thinks of an answer."""
        found = {}
        given = {"request": request, "tokens": tokens, "text": text, "outcome": outcome}
        for implementation in self._dispatcher.of("score_confidence"):
            confidence = await self._ask(implementation, given, _confidence)
            if confidence is not None:
                found[implementation.plugin.name] = confidence
        return found

    async def transform_response(
        self, request: RequestInfo, response: JsonObject, check: Callable[[JsonObject], Any]
    ) -> JsonObject:
        """The answer that the plugins make of it; what ``check`` refuses is not taken."""
        for implementation in self._dispatcher.of("transform_response"):
            given = {"request": request, "response": response}
            response = await self._chained(implementation, given, dict, response, check)
        return response

    async def transform_delta(self, request: RequestInfo, delta: TextDelta) -> TextDelta:
        """The piece that the plugins make of it."""
        for implementation in self._dispatcher.of("transform_delta"):
            given = {"request": request, "delta": delta}
            delta = await self._chained(implementation, given, TextDelta, delta, _text_delta)
        return delta

    async def _chained(
        self, implementation: Implementation, given: dict[str, Any], kind: type[Any], before: Result, check: Check
    ) -> Result:
        def checked(found: Any) -> Any:
            check(expect(found, kind, implementation.hook))
            return found

        found: Result | None = await self._ask(implementation, given, checked)
        return before if found is None else found

    async def _ask(self, implementation: Implementation, given: dict[str, Any], check: Check = lambda r: r) -> Any:
        """What ``check`` makes of its answer; None if there is none, or none that will do."""
        try:
            return await self._dispatcher.call(implementation, given, lambda r: None if r is None else check(r))
        except Exception:  # counted and logged
            return None

    # --- On the way --------------------------------------------------------------------------------------------------

    def observe_tokens(self, request: RequestInfo, choice: int, tokens: Sequence[TokenEvent]) -> None:
        """Show tokens to those who observe them; nobody waits for what they do."""
        for implementation in self._dispatcher.of("observe_tokens"):
            thread = implementation.plugin.thread
            if thread.replace_if_hung():
                self._dispatcher.failed(implementation, TimeoutError())
            if thread.waiting > BACKLOG:
                self._dispatcher.failed(implementation, OverflowError(f"{BACKLOG} steps wait for it"))
                continue
            work = implementation.bind({"request": request, "choice": choice, "tokens": tokens})
            thread.submit(partial(self._observed, implementation, work), self._dispatcher.limit("observe_tokens"))

    def _observed(self, implementation: Implementation, work: Callable[[], Any]) -> None:
        if not implementation.plugin.active:
            return
        try:
            work()
        except ESCAPES as error:
            self._dispatcher.failed(implementation, error)
        else:
            implementation.plugin.count(implementation.hook, 0.0)

    def log(self, record: LogRecord) -> None:
        """Tell a station on a request's way."""
        for mailbox in self._mail["log_record"]:
            mailbox.put({"record": record})

    def on_event(self, event: Event) -> None:
        """Tell what happened."""
        for mailbox in self._mail["on_event"]:
            mailbox.put({"event": event})


def _refuse_taken(name: str, taken: set[str], implementation: Implementation) -> None:
    if name in taken:
        raise ConfigurationError(
            f"Plugin {implementation.plugin.name} brings {name!r}, which is there already.",
            suggestions=(f"Leave it out: --disable-plugin {implementation.plugin.name}.",),
        )


def _signals(found: Any) -> frozenset[Signal]:
    signals = frozenset(expect(found, (set, frozenset), "token_signals"))
    if unknown := signals - SIGNALS:
        raise PluginError(f"{unknown} is not a signal")
    return cast("frozenset[Signal]", signals)


def _identity(found: Any) -> Identity | None:
    return None if found is None else cast(Identity, expect(found, Identity, "authenticate"))


def _compressed(found: Any) -> Compressed:
    return cast(Compressed, expect(found, Compressed, "compress_context"))


def _one_of(name: Any, available: Sequence[str]) -> str:
    if name not in available:
        raise PluginError(f"select_backend answered {name!r}, which is not available")
    return cast(str, name)


def _confidence(found: Any) -> Confidence:
    confidence: Confidence = expect(found, Confidence, "score_confidence")
    if not 0 <= confidence.score <= 1:
        raise PluginError(f"a score of {confidence.score}, which is not from 0 to 1")
    factors = confidence.factors
    if not (
        isinstance(confidence.label, str) and isinstance(factors, Mapping) and all(map(_is_factor, factors.items()))
    ):
        raise PluginError("a label is text, and factors are numbers by name")
    return confidence


def _is_factor(factor: tuple[Any, Any]) -> bool:
    name, value = factor
    return isinstance(name, str) and isinstance(value, int | float) and math.isfinite(value)


def _text_delta(found: Any) -> None:
    if not isinstance(expect(found, TextDelta, "transform_delta").text, str):
        raise PluginError("a delta without text")
