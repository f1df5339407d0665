"""Makes values fit for a line of a log: plain, bounded, and without secrets."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from structlog.typing import EventDict

from jackfield_logging.redaction import Redacted, Redactor

DEPTH = 6
"""Levels of objects and lists; what is deeper is named by its type."""
ITEMS = 200
"""The most items of one object or list."""
TEXT = 8192
"""The most characters of a text, but for those that have been cut already."""
KEY = 100
"""The most characters of a key."""


class Sanitizer:
    """A structlog processor: all values become JSON that any reader takes, whatever they were.

    Args:
        redactor: hides secrets in all text but the request's id, which clients want to find again.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def __call__(self, logger: object, method: str, event_dict: EventDict) -> EventDict:
        """The same line, clean."""
        clean = self._mapping(event_dict, DEPTH)
        return clean | {"request_id": event_dict["request_id"]} if "request_id" in event_dict else clean

    def _value(self, value: Any, depth: int) -> Any:
        match value:
            case None | bool() | Redacted():
                return value
            case str():
                return self._text(value)
            case int():
                return int(value) if -(2**63) <= value < 2**64 else f"a number of {value.bit_length()} bits"
            case float():
                return round(value, 6) if math.isfinite(value) else None
            case _:
                return self._composite(value, depth - 1)

    def _composite(self, value: Any, depth: int) -> Any:
        if depth and isinstance(value, Mapping):
            return self._mapping(value, depth)
        if depth and isinstance(value, list | tuple | set | frozenset):
            return self._sequence(value, depth)
        return self._text(_described(value))

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        clean = {self._key(key): self._value(item, depth) for key, item in _first(value.items())}
        return clean | _omitted(value)

    def _sequence(self, value: Iterable[Any], depth: int) -> list[Any]:
        items = list(value)
        return [self._value(item, depth) for item in _first(items)] + list(_omitted(items).values())

    def _key(self, key: Any) -> str:
        return self._redactor.redact(key if isinstance(key, str) else _described(key), KEY)

    def _text(self, text: str) -> str:
        return self._redactor.redact(text, TEXT)


def _first(items: Iterable[Any]) -> Iterable[Any]:
    return (item for item, _ in zip(items, range(ITEMS), strict=False))


def _omitted(items: Any) -> dict[str, str]:
    return {"omitted": f"{len(items) - ITEMS} more"} if len(items) > ITEMS else {}


def _described(value: object) -> str:
    """Whatever it is, in words; an object that cannot say what it is costs nobody a line."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"
