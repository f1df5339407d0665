"""What is told of an event, and how it is written down."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from jackfield.hooks import Event, JsonObject

LONGEST_TITLE = 500
"""Characters of the sentence that tells what happened; chats and phones take no more."""


@dataclass(frozen=True, slots=True)
class Notification:
    """An event on its way to somebody."""

    kind: str
    level: str
    title: str
    """One sentence for a person."""
    model: str | None
    request_id: str | None
    time: float
    """Seconds since 1970."""
    data: Mapping[str, Any] = field(default_factory=dict)
    sound: bool = True
    held_back: int = 0
    """So many like it were not sent."""

    @classmethod
    def of(cls, event: Event, *, sound: bool = True, held_back: int = 0) -> "Notification":
        """What to tell of an event."""
        return cls(
            kind=event.kind,
            level=event.level,
            title=event.title[:LONGEST_TITLE],
            model=event.model,
            request_id=event.request_id,
            time=event.time,
            data=dict(event.data),
            sound=sound,
            held_back=held_back,
        )

    @classmethod
    def from_json(cls, text: str) -> "Notification":
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """All of it, for the outbox."""
        return compact(asdict(self))

    @property
    def heading(self) -> str:
        """A few words: ``Engine failed``."""
        return self.kind.replace("_", " ").capitalize()

    @property
    def text(self) -> str:
        """The rest, in lines."""
        lines = [self.title]
        if self.model:
            lines.append(f"Model: {self.model}")
        if self.request_id:
            lines.append(f"Request: {self.request_id}")
        if self.held_back:
            lines.append(f"{self.held_back} more like this before it were not sent.")
        return "\n".join(lines)

    @property
    def timestamp(self) -> str:
        """When it happened, as in ``2026-01-31T12:00:00.123000Z``."""
        return datetime.fromtimestamp(self.time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def event_object(event: Event) -> JsonObject:
    """An event as the live stream tells it."""
    return {
        "kind": event.kind,
        "level": event.level,
        "title": event.title,
        "model": event.model,
        "request_id": event.request_id,
        "time": event.time,
        "data": dict(event.data),
    }


def compact(value: Any) -> str:
    """JSON without spaces, whatever plugins have put into their events."""
    return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The same in what JSON knows; numbers that are none become null, and everything else text."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_text(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    return _text(value)


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()
