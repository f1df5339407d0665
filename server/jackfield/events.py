"""What happens in the server that somebody may want to know: events, and who listens to them."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

logger = logging.getLogger(__name__)

EventKind = Literal[
    "completed",
    "failed",
    "cancelled",
    "slow",
    "low_confidence",
    "model_loaded",
    "model_unloaded",
    "memory_pressure",
    "backend_fallback",
    "plugin_disabled",
    "engine_failed",
    "engine_restarted",
]
"""What the server itself tells; plugins may have kinds of their own."""

Level = Literal["info", "warning", "error"]

_LOG_LEVELS: Mapping[Level, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. Never holds text of prompts or answers."""

    kind: EventKind | str
    level: Level
    title: str
    """One sentence for a person."""
    model: str | None = None
    request_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


class EventBus:
    """Tells events to all who listen. For the event loop's thread only."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Event], None]] = [log]

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` with every event from now on; it must not wait for anything."""
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Tell everybody. A listener that fails is logged, and costs the others nothing."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("A listener failed at the event %s", event.kind)


def log(event: Event) -> None:
    """Write an event into the log; how each request went is there for those who look closely."""
    level = logging.DEBUG if event.request_id else _LOG_LEVELS[event.level]
    logger.log(level, "%s: %s %s", event.kind, event.title, dict(event.data) or "")
