"""One request and its answer, as plugins are told of it: stations for those who log, ends for those who watch."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from starlette.requests import HTTPConnection

from jackfield.engine.request import TokenEvent
from jackfield.errors import InvalidRequestError, JackfieldError, unexpected
from jackfield.events import Event, EventBus, Level
from jackfield.hooks.calls import Hooks
from jackfield.hooks.data import LogRecord, RecordKind, RequestInfo
from jackfield.metrics.requests import CANCELLED, RequestMetrics, Timing
from jackfield.protocol.asking import Asking
from jackfield.protocol.embeddings import EmbeddingsRequest
from jackfield.protocol.extension import AttemptReport, CompressionReport
from jackfield.security.rate import Allowance


def new_request_id() -> str:
    """``req_<seconds since 1970>_<8 hex digits>``."""
    return f"req_{int(time.time())}_{secrets.token_hex(4)}"


@dataclass
class Exchange:
    """One request on its way through the server.

    Args:
        info: what is known of it.
        hooks: the plugins.
        events: who hears how it ended.
        metrics: where it is counted.
        slow_seconds: a first token that takes longer is an event.
    """

    info: RequestInfo
    hooks: Hooks
    events: EventBus
    metrics: RequestMetrics
    slow_seconds: float
    arrived: float = field(default_factory=time.monotonic)
    compression: CompressionReport | None = None
    backend: str = ""
    attempts: list[AttemptReport] = field(default_factory=list)
    """Along the model's route, if it has one."""
    first_token_seconds: float | None = None
    _heard: dict[int, float] = field(default_factory=dict)
    """When each choice had its last token."""
    logged: bool = True
    """Whether those who log are told."""
    suggest: Callable[[JackfieldError, RequestInfo], tuple[str, ...]] = lambda error, request: ()
    """What to do about an error, as far as others could answer."""
    allowance: Allowance | None = None
    """Of the key that the request carries, if it has limits of its own."""
    _spent: int = 0
    _ended: bool = False
    _received: bool = False

    @classmethod
    def of(cls, request: HTTPConnection) -> "Exchange":
        """A request that has just arrived."""
        state, arrived = request.app.state, request.state
        endpoint = request.scope["path"].removeprefix("/v1")
        info = RequestInfo(arrived.request_id, endpoint, "", identity=arrived.identity)
        allowance = getattr(arrived, "allowance", None)
        slow = state.settings.slow_seconds
        suggest = state.host.alternatives.suggest
        return cls(info, state.hooks, state.events, state.metrics.requests, slow, suggest=suggest, allowance=allowance)

    @classmethod
    def unlogged(cls, request: HTTPConnection) -> "Exchange":
        """One for which nothing is generated: those who log are not told of it."""
        exchange = cls.of(request)
        exchange.logged = False
        return exchange

    def asks(self, asked: Asking | EmbeddingsRequest) -> None:
        """What the client wants has been read.

        Raises:
            InvalidRequestError: it has options for a plugin that is not there.
        """
        options = asked.jackfield if isinstance(asked.jackfield, dict) else {}
        for name in options:
            self._check_plugin(name)
        stream = isinstance(asked, Asking) and bool(asked.stream)
        self.info = replace(self.info, model=asked.model, stream=stream, options=options)

    def _check_plugin(self, name: str) -> None:
        plugin = self.hooks.named(name)
        if plugin is None or not plugin.active:
            active = [plugin.name for plugin in self.hooks.plugins if plugin.active]
            raise InvalidRequestError(
                f"There is no plugin {name!r} at work here.",
                param=f"jackfield.{name}",
                code="invalid_value",
                suggestions=(f"Use one of: {', '.join(active)}." if active else "Send true instead of an object.",),
            )

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return time.monotonic() - self.arrived

    def deadline(self, timeout: float | None) -> float | None:
        """When a request has to end that says how long it may take, on ``time.monotonic``'s clock."""
        return None if timeout is None else self.arrived + timeout

    def spends(self, tokens: int) -> None:
        """So many tokens of prompts and answers so far."""
        if self.allowance and tokens > self._spent:
            self.allowance.take_tokens(tokens - self._spent)
        self._spent = max(tokens, self._spent)

    # --- Stations ------------------------------------------------------------------------------------------------

    def station(self, kind: RecordKind, **data: Any) -> None:
        """Tell those who log."""
        if self.logged and self.hooks.has("log_record"):
            self.hooks.log(LogRecord(kind, self.info, data))

    def received(self, **facts: Any) -> None:
        """It is known what the request asks for; once is enough, whoever answers."""
        if not self._received:
            self._received = True
            self.station("received", **facts)

    def tried(self, backend: str, outcome: Literal["answered", "skipped", "failed"], reason: str | None) -> None:
        """One way of the model's route did so; the reason is a word of our own or an error's code."""
        self.attempts.append(AttemptReport(backend=backend, outcome=outcome, reason=reason))

    def answered_by(self, backend: str, reason: str) -> None:
        """Somebody was chosen to answer."""
        self.backend = backend
        self.station("backend", backend=backend, reason=reason)

    def fell_back(self, failed: str, backend: str, reason: str) -> None:
        """Who was to answer could not, and somebody else does."""
        self.station("fallback", **{"from": failed, "to": backend, "reason": reason})
        self.backend = backend
        self.metrics.fell_back(self.info.model, failed)
        title = f"{failed} could not answer, so {backend} does."
        self._tell("backend_fallback", "warning", title, {"from": failed, "to": backend, "reason": reason})

    def generated(self, choice: int, tokens: Sequence[TokenEvent], *, waited: float, cached: int) -> None:
        """A choice has more tokens."""
        now = time.monotonic()
        if self.first_token_seconds is None:
            self._spoke(waited, cached)
        if (last := self._heard.get(choice)) is not None:
            self.metrics.went_on(self.info.model, now - last)
        self._heard[choice] = now
        self.hooks.observe_tokens(self.info, choice, tokens)

    def _spoke(self, waited: float, cached: int) -> None:
        seconds = self.first_token_seconds = self.seconds
        self.metrics.spoke(self.info.endpoint, self.info.model, seconds)
        self.station("first_token", seconds=seconds, queue_seconds=waited, cached_tokens=cached)
        if seconds > self.slow_seconds:
            data = {"first_token_seconds": seconds, "queue_seconds": waited}
            self._tell("slow", "warning", f"The first token took {seconds:.1f} seconds.", data)

    def finished(self, reason: str, tokens: int, timing: Timing | None = None) -> None:
        """A choice has come to its end, after so many tokens; the engine says where the time went."""
        self.metrics.finished(self.info.endpoint, self.info.model, reason, tokens, timing)

    # --- Ends: the first one counts ------------------------------------------------------------------------------

    def completed(self, **data: Any) -> None:
        """The answer is whole."""
        if self._ends():
            told = {**data, "seconds": self.seconds, "first_token_seconds": self.first_token_seconds}
            told |= {"backend": self.backend}
            self.metrics.succeeded(self.info.endpoint, self.info.model, told["seconds"], data["prompt_tokens"])
            compression = self.compression.model_dump() if self.compression else None
            self.station("completed", **told, compression=compression)
            self._tell("completed", "info", f"Answered in {told['seconds']:.2f} seconds.", told)

    def embedded(self, **data: Any) -> None:
        """There are vectors instead of an answer, so most of what is told of answers is nothing."""
        nothing = {"cached_tokens": 0, "completion_tokens": 0, "tokens_per_second": 0.0}
        self.completed(finish_reasons=[], ended_by=[], confidence=[], **nothing, **data)

    def failed(self, error: Exception) -> None:
        """There is no answer, or not all of it."""
        if not self._ends():
            return
        known = error if isinstance(error, JackfieldError) else unexpected()
        # One error may end several requests.
        known.suggestions = tuple(dict.fromkeys((*known.suggestions, *self.suggest(known, self.info))))
        data = {
            "status": known.status,
            "code": known.error_code,
            "type": known.type,
            "category": known.category,
            "message": known.message,
            "suggestions": known.suggestions,
            "seconds": self.seconds,
        }
        self.station("failed", **data)
        self.metrics.ended(self.info.endpoint, self.info.model, known.status)
        level: Level = "error" if known.status >= 500 else "warning"
        # Messages may quote the request.
        told = {name: data[name] for name in ("status", "code", "type", "category", "seconds")}
        self._tell("failed", level, f"A request failed: {known.error_code or known.type}.", told)

    def cancelled(self, completion_tokens: int) -> None:
        """Nobody waits for the answer any more."""
        if self._ends():
            data = {"completion_tokens": completion_tokens, "seconds": self.seconds}
            self.station("cancelled", **data)
            self.metrics.ended(self.info.endpoint, self.info.model, CANCELLED)
            self._tell("cancelled", "info", "The client hung up.", data)

    def _ends(self) -> bool:
        ends, self._ended = not self._ended, True
        return ends

    def _tell(self, kind: str, level: Level, title: str, data: Mapping[str, Any]) -> None:
        self.events.emit(Event(kind, level, title, self.info.model, self.info.id, data))
