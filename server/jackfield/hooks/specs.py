"""The sockets: every hook that plugins can implement, by exact signature.

A plugin is a module, an object or a class without arguments, named in the entry-point group ``jackfield``. It marks its
functions with `hookimpl`, and may leave out arguments that it does not need. Hooks marked *may be async* run on the
event loop when they are ``async def``, and on the plugin's own thread otherwise; all others are plain functions.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import click
import pluggy
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from jackfield.engine.request import LogitsProcessor, SamplingParameters, TokenEvent, TokenSampler
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
)
from jackfield.models.device import Device
from jackfield.text.tool_calls import ToolCallParser

if TYPE_CHECKING:
    from mlx import nn

    from jackfield.hooks.server import Server

PROJECT = "jackfield"
"""Of pluggy's markers, and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class ContextTokenizer(Protocol):
    """The served model's tokenizer, for those who have to stay within a budget; from any thread."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without what the model expects around it."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text."""

    def count(self, messages: Sequence[ChatMessage], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the whole prompt that the chat template makes of a conversation."""


class ModelSource(Protocol):
    """Where models come from."""

    def matches(self, name: str) -> bool:
        """Whether this is a name that the source knows."""

    def fetch(self, name: str, cache: Any, progress: Any) -> Any:
        """The model's folder (a Path) on this machine, fetched if need be into the folder ``cache``."""


class Backend(Protocol):
    """Somebody else who answers requests, made once with the server as its only argument."""

    def serves(self, request: RequestInfo) -> bool:
        """Whether it can answer this request now; must not wait for anything."""

    def answer(self, request: RequestInfo, body: JsonObject) -> AsyncIterator[str]:
        """The answer's text as it comes, to a request in OpenAI's words; closed when the client hangs up."""


RegisterSource = Callable[[str, type[ModelSource]], None]
RegisterParser = Callable[[str, Callable[[frozenset[str]], ToolCallParser]], None]
RegisterBackend = Callable[[str, type[Backend]], None]
"""Take a name, and what makes one: nothing for a source, the tools' names for a parser, the server for a backend."""


class Sockets(Protocol):
    """All hooks."""

    # --- When the server starts: plain functions, in this order --------------------------------------------------

    @hookspec
    def configure(self) -> type[BaseModel]:
        """The class of the plugin's settings, which come from ``[plugins.NAME]``; make it ``extra="forbid"``."""

    @hookspec
    def register_commands(self, cli: click.Group) -> None:
        """Add sub-commands to ``jackfield``."""

    @hookspec
    def register_model_sources(self, register: RegisterSource) -> None:
        """Name places that models come from; they are asked before the built-in ones."""

    @hookspec
    def register_tool_parsers(self, register: RegisterParser) -> None:
        """Name ways to find tool calls in an answer's text, for the setting ``tool_parser``."""

    @hookspec
    def register_backends(self, register: RegisterBackend) -> None:
        """Name others who answer requests; `select_backend` decides when."""

    @hookspec
    def register_metrics(self, registry: CollectorRegistry, config: Any) -> None:
        """Add metrics to those of ``/metrics``; their names begin with ``jackfield_``."""

    @hookspec
    def token_signals(self) -> set[Signal]:
        """What to compute for every token of every request; all that nobody asks for is saved."""

    @hookspec
    def prepare_model(self, model: "nn.Module", config: Mapping[str, Any], device: Device) -> "nn.Module | None":
        """On the engine's thread, after loading: the model, perhaps with faster layers; None leaves it as it is."""

    @hookspec
    def register_routes(self, server: "Server", config: Any) -> Iterable[BaseRoute]:
        """Routes to serve beside the built-in ones; a path that is taken is an error."""

    @hookspec
    def open_paths(self, config: Any) -> Iterable[str]:
        """Paths of the plugin's own routes that can be got without a key: pages that ask for it themselves."""

    @hookspec
    def register_middleware(self, server: "Server", config: Any) -> Iterable[Middleware]:
        """ASGI middleware around all routes, the first one outermost."""

    @hookspec
    def startup(self, server: "Server", config: Any) -> None:
        """The models are loaded, and requests are about to come. May be async."""

    @hookspec
    def shutdown(self, server: "Server") -> None:
        """No more requests come. May be async."""

    # --- Once a request: may be async ------------------------------------------------------------------------------

    @hookspec
    def authenticate(self, request: HTTPConnection) -> Identity | None:
        """Who sends a request, by its headers; the first answer counts, an error or nobody's answer denies it."""

    @hookspec
    def transform_request(self, body: JsonObject, request: RequestInfo) -> JsonObject | None:
        """The request to answer instead of ``body``, which is to be left as it is; InvalidRequestError refuses it."""

    @hookspec
    def compress_context(  # noqa: PLR0917 - pluggy passes all of them by name
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[JsonObject],
        tokenizer: ContextTokenizer,
        budget: int,
        model: str,
        request: RequestInfo,
    ) -> Compressed | None:
        """A conversation of more than ``budget`` tokens, made shorter; the first answer counts and is recounted."""

    @hookspec
    def select_backend(self, request: RequestInfo, available: Sequence[str]) -> str | None:
        """Who answers: one of ``available``; the first answer counts, None leaves it to the next plugin."""

    @hookspec
    def score_confidence(
        self, request: RequestInfo, tokens: Sequence[TokenEvent], text: str, outcome: Outcome
    ) -> Confidence | None:
        """How far an answer can be trusted, from its tokens with the signals that the plugin asked for."""

    @hookspec
    def transform_response(self, request: RequestInfo, response: JsonObject) -> JsonObject | None:
        """The whole answer to send instead of ``response``, in turns; validated again. Not for streams."""

    @hookspec
    def log_record(self, record: LogRecord) -> None:
        """A station on a request's way, told off the path of the answer."""

    @hookspec
    def on_event(self, event: Event) -> None:
        """Something happened that somebody may want to know; told one by one, off the path of any answer."""

    # --- At every step of an answer ----------------------------------------------------------------------------------

    @hookspec
    def observe_tokens(self, request: RequestInfo, choice: int, tokens: Sequence[TokenEvent]) -> None:
        """More tokens of an answer; a plain function, on the plugin's own thread."""

    @hookspec
    def transform_delta(self, request: RequestInfo, delta: TextDelta) -> TextDelta | None:
        """The piece of a stream to send instead of ``delta``, in turns; None leaves it as it is. May be async."""

    # --- On the engine's thread, when a request gets there: plain functions, and quick ones -------------------------

    @hookspec
    def logits_processors(self, request: RequestInfo) -> Sequence[LogitsProcessor]:
        """Functions that change this request's logits at every step; one that fails is left out from then on."""

    @hookspec
    def make_sampler(self, request: RequestInfo, sampling: SamplingParameters) -> TokenSampler | None:
        """Chooses this request's tokens in place of the built-in sampler; the first answer counts."""
