"""Lines for the stations on a request's way."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from jackfield.hooks import Event, LogRecord, RequestInfo
from jackfield_logging.analysis import Analysis, complexity
from jackfield_logging.journal import Line

_EVENTS = {
    "received": "request_received",
    "backend": "backend_chosen",
    "fallback": "backend_fallback",
    "first_token": "first_token",
    "completed": "request_completed",
    "failed": "request_failed",
    "cancelled": "request_cancelled",
}
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_TOLD = frozenset({"completed", "failed", "cancelled", "backend_fallback"})
"""Events that repeat what a record says."""


def lines(record: LogRecord, analysis: Analysis | None) -> Iterator[Line]:
    """The lines that a record becomes."""
    fields = _FIELDS.get(record.kind, _as_it_is)(record, analysis)
    yield _line(record, _level(record), _EVENTS.get(record.kind, record.kind), fields)
    if record.kind == "completed" and any(record.data.get("confidence") or ()):
        yield _line(record, logging.DEBUG, "confidence", {"choices": record.data["confidence"]})


def event_line(event: Event) -> Line | None:
    """The line that an event becomes; None for those that a record has told already."""
    if event.request_id and event.kind in _TOLD:
        return None
    fields = {"title": event.title, "model": event.model, "data": event.data}
    return Line(_LEVELS.get(event.level, logging.INFO), event.kind, fields, event.request_id, event.time)


def _line(record: LogRecord, level: int, event: str, fields: Mapping[str, Any]) -> Line:
    return Line(level, event, fields, record.request.id, record.time)


def _level(record: LogRecord) -> int:
    if record.kind == "failed":
        return logging.ERROR if record.data.get("status", 500) >= 500 else logging.WARNING
    return logging.WARNING if record.kind == "fallback" else logging.INFO


def _as_it_is(record: LogRecord, analysis: Analysis | None) -> Mapping[str, Any]:
    return record.data


def _received(record: LogRecord, analysis: Analysis | None) -> Mapping[str, Any]:
    fields = _who(record.request) | dict(record.data)
    if analysis:
        fields |= {"characters": analysis.characters, "code_share": analysis.code_share}
    return fields | {"complexity": complexity(record.data, analysis.code_share if analysis else None)}


def _completed(record: LogRecord, analysis: Analysis | None) -> Mapping[str, Any]:
    choices = record.data.get("confidence") or ()
    scores = [{plugin: judged["score"] for plugin, judged in choice.items()} for choice in choices]
    return dict(record.data) | ({"confidence": scores} if any(scores) else {})


def _failed(record: LogRecord, analysis: Analysis | None) -> Mapping[str, Any]:
    # What OpenAI's clients call its type says less than its category.
    return _who(record.request) | {name: value for name, value in record.data.items() if name != "type"}


def _who(request: RequestInfo) -> dict[str, Any]:
    identity = {"identity": request.identity.name} if request.identity else {}
    return {"endpoint": request.endpoint, "model": request.model, "stream": request.stream} | identity


_FIELDS = {"received": _received, "completed": _completed, "failed": _failed}
