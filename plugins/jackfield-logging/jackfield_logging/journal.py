"""Writes lines: arranged, without secrets, as JSON or for a person. It leaves structlog's global settings alone."""

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from jackfield_logging.output import Output
from jackfield_logging.redaction import Redactor
from jackfield_logging.sanitizer import Sanitizer
from jackfield_logging.settings import Settings

logger = logging.getLogger(__name__)

CAPACITY = 10_000
"""Lines that wait to be written; more are lost, and counted."""
CLOSING_SECONDS = 10.0
"""How long the end of the server waits for them."""

_HEAD = ("timestamp", "level", "event", "request_id")
_SPECIAL = frozenset({*_HEAD, "logger_name", "stack", "exception", "exc_info"})
"""Keys with a meaning of their own, in every line or to structlog's renderer."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be told."""

    level: int
    """Of the standard library's ``logging``."""
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


class Journal:
    """Takes lines from any thread at once, and writes them in a thread of its own: a disk that hangs holds up nobody.

    Args:
        settings: what to write, and how.
        output: where to; the journal's to close.
        redactor: hides secrets.
    """

    def __init__(self, settings: Settings, output: Output, redactor: Redactor) -> None:
        self._output = output
        self._log: FilteringBoundLogger = structlog.wrap_logger(
            _Levels(output),
            processors=[_arranged, Sanitizer(redactor), *_renderers(settings, output)],
            wrapper_class=structlog.make_filtering_bound_logger(settings.level),
            context_class=dict,
            cache_logger_on_first_use=False,
        ).bind()
        self._waiting: queue.Queue[Line | None] = queue.Queue(CAPACITY)
        self._ending = False
        self._lost = 0
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="jackfield-logging", daemon=True)
        self._thread.start()

    def write(self, line: Line) -> None:
        """Have a line written, if its level is wanted."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            with self._counting:
                self._lost += 1

    def close(self) -> None:
        """Write what waits, and give the file back; a disk that hangs is left alone."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSING_SECONDS)
        self._thread.join(CLOSING_SECONDS)
        self._ending = True
        if not self._thread.is_alive():
            self._output.close()

    def _run(self) -> None:
        while (line := self._waiting.get()) and not self._ending:
            self._render(line)
            with self._counting:
                lost, self._lost = self._lost, 0
            if lost:
                self._render(Line(logging.WARNING, "lines_lost", {"lines": lost}))

    def _render(self, line: Line) -> None:
        try:
            self._log.log(_standard(line.level), line.event, line=line)
        except Exception:
            logger.exception("A line of the log could not be written")


class _Levels:
    """What structlog wraps: a method for each level."""

    def __init__(self, output: Output) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = output.write


def _arranged(logger: object, method: str, event_dict: EventDict) -> EventDict:
    line: Line = event_dict["line"]
    head = {"timestamp": _timestamp(line.time), "level": method, "event": line.event}
    own = {"request_id": line.request_id} if line.request_id else {}
    return head | own | {f"{key}_" if key in _SPECIAL else key: value for key, value in line.fields.items()}


def _renderers(settings: Settings, output: Output) -> list[Processor]:
    colors = output.is_terminal
    if settings.format == "console" or (settings.format == "auto" and colors):
        return [_printable, structlog.dev.ConsoleRenderer(colors=colors, repr_native_str=True, sort_keys=False)]
    return [_as_json]


def _as_json(logger: object, method: str, event_dict: EventDict) -> str:
    """Pure ASCII, so that no character can end a line or steer a terminal."""
    return json.dumps(event_dict, allow_nan=False)


def _printable(logger: object, method: str, event_dict: EventDict) -> EventDict:
    """Keys and the event without control characters; the renderer escapes only the other values."""
    clean = {_escaped(key): value for key, value in event_dict.items()}
    return clean | {"event": _escaped(event_dict["event"])}


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _standard(level: int) -> int:
    """The standard level at or below it: the standard library knows any number."""
    return max(logging.DEBUG, min(logging.CRITICAL, level // 10 * 10))


def _timestamp(seconds: float) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.now(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
