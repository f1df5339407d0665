"""The server as one plugin sees it."""

import asyncio
import secrets
import uuid
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jackfield.alternatives import Alternatives
from jackfield.answer import Answer
from jackfield.api.form import ChatForm
from jackfield.api.generation import engine_requests
from jackfield.backends.cascade import Cascade
from jackfield.backends.plugged import TEXT_ALONE, PluggedAnswer, PluggedTask
from jackfield.backends.route import Standing
from jackfield.backends.upstream import Upstream
from jackfield.choice import Delta
from jackfield.drain import Drain
from jackfield.engine.statistics import Statistics
from jackfield.errors import ConfigurationError, UnavailableError
from jackfield.events import Event, EventBus
from jackfield.exchange import Exchange, new_request_id
from jackfield.folders import data_dir
from jackfield.hooks.calls import Hooks
from jackfield.hooks.data import ChatMessage, JsonObject, RequestInfo
from jackfield.hooks.discovery import given
from jackfield.hooks.dispatcher import ESCAPES
from jackfield.hooks.parsers import IsolatedParser, MakeParser
from jackfield.hooks.plugin import Plugin
from jackfield.hooks.routes import check_routes, taken_names
from jackfield.hooks.server import ModelInfo, plugin_data_dir
from jackfield.hooks.specs import Backend
from jackfield.metrics.requests import PLUGIN, RequestMetrics
from jackfield.models.registry import Entry, Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.recent_items import RecentItems
from jackfield.response_store import ResponseStore
from jackfield.settings import Settings
from jackfield.settings.upstreams import OWN, Route
from jackfield.tools.formats import AUTO, HERMES, NAMES, CallFormat, format_of, named
from jackfield.vision.pictures import Pictures

BEHIND_CLIENTS = 10
"""Priority of what plugins ask for: clients wait already."""


class Host:
    """What plugins have in common: makes the `Server` of each."""

    def __init__(
        self, settings: Settings, registry: Registry, hooks: Hooks, events: EventBus, metrics: RequestMetrics
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.hooks = hooks
        self.events = events
        self.metrics = metrics
        self.url = ""
        self.id = secrets.token_hex(8)
        """This server, to others that requests are passed on to."""
        self.responses = ResponseStore(
            data_dir(), max_bytes=settings.stored_responses_bytes, max_days=settings.stored_responses_days
        )
        self.recent_items = RecentItems()
        self.drain = Drain(registry)
        check_routes(settings, hooks)
        self.backends = hooks.backends(self.server, taken_names(settings))
        self.attempts: Counter[tuple[str, str, str, str]] = Counter()
        """Along routes: model, backend, outcome and reason, which are names from the settings and words of our own."""
        self.upstreams = {name: Upstream(name, one) for name, one in settings.upstreams.items()}
        self._retired: list[Upstream] = []
        self._routes = {name: one.route for name, one in settings.models.items()}
        self.alternatives = Alternatives(self.route, registry, self.upstreams, settings)
        self._parsers = hooks.tool_parsers([AUTO, *NAMES])
        self._check_parser()
        self.loop: asyncio.AbstractEventLoop | None = None

    def server(self, plugin: Plugin) -> "PluginServer":
        """The server as this plugin sees it."""
        return PluginServer(self, plugin)

    async def start(self) -> None:
        """Requests are about to come: tell the plugins."""
        self.loop = asyncio.get_running_loop()
        self.hooks.on_disabled(self._tell_disabled)
        self.events.listen(self.hooks.on_event)
        for plugin in self.hooks.plugins:
            if plugin.state == "disabled":
                # While the model was prepared, when nobody could hear of it yet.
                self._tell_disabled(plugin, plugin.errors[-1] if plugin.errors else "")
        await self.responses.forget_old()
        await self.hooks.startup(self.server)
        for model in self.registry:
            self.emit(Event("model_loaded", "info", f"{model.id} is ready.", model.id))

    async def stop(self) -> None:
        """No more requests come."""
        for model in self.registry:
            self.emit(Event("model_unloaded", "info", f"{model.id} is unloaded.", model.id))
        await self.hooks.shutdown(self.server)
        for upstream in (*self.upstreams.values(), *self._retired):
            await upstream.close()

    def _check_parser(self) -> None:
        name, known = self.settings.tool_parser, [AUTO, *NAMES, *self._parsers]
        if name not in known:
            raise ConfigurationError(
                f"There is no tool parser {name!r}.", suggestions=(f"Set tool_parser to one of: {', '.join(known)}.",)
            )

    def call_format(self, tokenizer: Tokenizer) -> tuple[CallFormat, MakeParser | None]:
        """How a model with this tokenizer writes tool calls; and a plugin's way to find them, if that is set."""
        name = self.settings.tool_parser
        if name not in self._parsers:
            return (format_of(tokenizer.template) if name == AUTO else named(name)), None
        plugin, make = self._parsers[name]
        return HERMES, partial(IsolatedParser, make, plugin=plugin, hooks=self.hooks) if plugin.active else None

    def route(self, entry: Entry) -> Route:
        """The ways that a model's requests may go; none: the engine here answers."""
        return self._routes.get(entry.id, ())

    def reroute(self, settings: Settings) -> None:
        """Put other upstreams and routes into force; requests under way go on as they began.

        Raises:
            ConfigurationError: a route leads to nobody; nothing has changed then.
        """
        check_routes(settings, self.hooks)
        self._routes = {name: one.route for name, one in settings.models.items()}
        for name in [name for name, one in self.upstreams.items() if settings.upstreams.get(name) != one.settings]:
            # Others may still wait for it.
            self._retired.append(self.upstreams.pop(name))
        for name, one in settings.upstreams.items():
            self.upstreams.setdefault(name, Upstream(name, one))

    async def backend(self, request: RequestInfo) -> tuple[str, str]:
        """Who is to answer a request, and why: ``mlx``, the engine here, or somebody whom a plugin brings."""
        if not self.backends:
            return OWN, "the model is served here"
        available = [
            OWN,
            *(name for name, (plugin, one) in self.backends.items() if self._serves(plugin, one, request)),
        ]
        chosen = await self.hooks.select_backend(request, available)
        return (chosen[0], f"chosen by plugin {chosen[1]}") if chosen else (OWN, "no plugin chose another one")

    def plugged(self, name: str, own: Answer, body: JsonObject, *, plain: bool) -> Cascade:
        """The answer of a backend that a plugin brings, with the engine's own as what to fall back on.

        ``plain`` says that one choice of text alone is asked for.
        """
        first, tokenizer = own.requests[0], own.model.tokenizer
        task = PluggedTask(
            body,
            own.requests,
            prompt_tokens=len(first.prompt),
            count=lambda text: len(tokenizer.encode(text, special=False)),
            plain=plain,
            deadline=first.deadline,
        )
        return Cascade(name, self.plugged_answer(name, task, own.exchange), own)

    def plugged_answer(self, name: str, task: PluggedTask, exchange: Exchange) -> PluggedAnswer:
        """The answer of a backend that a plugin brings."""
        plugin, backend = self.backends[name]
        outcome = partial(self._count_backend, plugin)
        seconds = self.settings.slow_hook_seconds
        return PluggedAnswer(name, backend, task, exchange, seconds=seconds, drain=self.drain, outcome=outcome)

    def standing(self, name: str, request: RequestInfo) -> Standing:
        """How a backend that a plugin brings stands."""
        plugin, backend = self.backends.get(name, (None, None))
        if plugin is None or backend is None or not plugin.active:
            return Standing(ready=False, lets_through=False)
        return Standing(serves=self._serves(plugin, backend, request), lacks=TEXT_ALONE, answers_alone=True)

    def _count_backend(self, plugin: Plugin, error: Exception | None) -> None:
        if error is None:
            plugin.count("register_backends", 0.0)
        else:
            self.hooks.failed(plugin, "register_backends", error)

    def _serves(self, plugin: Plugin, backend: Backend, request: RequestInfo) -> bool:
        try:
            return plugin.active and backend.serves(request)
        except ESCAPES as error:
            self.hooks.failed(plugin, "register_backends", error)
            return False

    def emit(self, event: Event) -> None:
        """Tell everybody, from any thread."""
        if self.loop is None:
            return
        try:
            here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            here = False
        if here:
            self.events.emit(event)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.emit, event)

    def _tell_disabled(self, plugin: Plugin, reason: str) -> None:
        title = f"Plugin {plugin.name} is disabled."
        self.emit(Event("plugin_disabled", "error", title, data={"plugin": plugin.name, "reason": reason}))


class PluginServer:
    """See `jackfield.hooks.Server`."""

    def __init__(self, host: Host, plugin: Plugin) -> None:
        self._host = host
        self._plugin = plugin

    @property
    def url(self) -> str:
        """Where the server is reached, without ``/v1``."""
        return self._host.url

    @cached_property
    def data_dir(self) -> Path:
        """The plugin's own folder."""
        return plugin_data_dir(self._plugin.name)

    def models(self) -> list[ModelInfo]:
        """All served models."""
        return [_info(entry) for entry in self._host.registry.entries]

    def plugins(self) -> list[dict[str, Any]]:
        """All plugins, as ``GET /v1/plugins`` lists them."""
        return self._host.hooks.reports()

    def emit(self, event: Event) -> None:
        """Tell everybody who listens."""
        self._host.emit(event)

    async def complete(
        self, messages: Sequence[ChatMessage], *, model: str | None = None, max_tokens: int = 256
    ) -> str:
        """What a served model answers, greedily.

        Raises:
            JackfieldError: it could not answer.
        """
        entries = self._host.registry.entries
        if not entries:
            raise UnavailableError("No model is served.", suggestions=("Serve one: jackfield serve --model NAME.",))
        loan = await self._host.registry.lend(model or entries[0].id, waits=False)
        try:
            return await self._complete(messages, loan.model, max_tokens)
        finally:
            loan.end()

    async def _complete(self, messages: Sequence[ChatMessage], served: ServedModel, max_tokens: int) -> str:
        # Seen by no plugin, or one that asks a model about every request would never come to an end.
        unseen = given((), self._host.settings)
        exchange = Exchange(
            RequestInfo(new_request_id(), PLUGIN, served.id),
            unseen,
            EventBus(),
            self._host.metrics,
            self._host.settings.slow_seconds,
        )
        document = {"model": served.id, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        # What it is asked for is short, and thoughts are not.
        own = {"priority": BEHIND_CLIENTS, "reasoning_effort": "none"}
        asked = ChatCompletionRequest.model_validate(document | own)
        pictures = None if served.images is None else await served.images.read(asked)
        return await _text(await asyncio.to_thread(_answer, asked, served, exchange, pictures))


def _info(entry: Entry) -> ModelInfo:
    model = entry.served
    statistics = Statistics() if model is None else model.engine.statistics
    return ModelInfo(entry.id, model.context_length if model else 0, entry.state, statistics.report())


def _answer(asked: ChatCompletionRequest, model: ServedModel, exchange: Exchange, pictures: Pictures | None) -> Answer:
    tokens, images = chat_prompt(asked, model.tokenizer, pictures)
    form = ChatForm(asked, model, HERMES, None, tokens).work_out()
    name = f"plugin-{uuid.uuid4().hex}"
    requests = engine_requests(asked, model, [tokens], exchange, name=name, param="messages", images=images)
    return Answer(model, requests, exchange, separators=[form.separator()])


async def _text(answer: Answer) -> str:
    answer.admit()
    try:
        return "".join([part.text async for part in answer if isinstance(part, Delta)])
    finally:
        answer.cancel()
