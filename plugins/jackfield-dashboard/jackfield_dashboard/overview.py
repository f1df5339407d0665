"""All that the page shows, as JSON."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

from jackfield.hooks import JsonObject, Server
from jackfield_dashboard.history import History
from jackfield_dashboard.journal import Journal
from jackfield_dashboard.settings import Settings

_OF_PLUGINS = ("name", "version", "state", "errors", "calls", "failures", "seconds")
"""Their settings are for ``GET /v1/plugins``."""


class Overview:
    """The server, as it stands.

    Args:
        server: asked for models and plugins.
        settings: how much is kept.
        clock: that never jumps, in seconds.
    """

    def __init__(self, server: Server, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._settings = settings
        self.history = History(server.models, clock, settings.minutes)
        self.journal = Journal(settings.requests, clock)

    def whole(self) -> JsonObject:
        """Everything that is known."""
        kept = {"minutes": self._settings.minutes, "requests": self._settings.requests}
        return {"keeps": kept, "history": list(self.history.samples), **self._now(0)}

    def news(self, version: int) -> JsonObject:
        """What is new since a version of the journal: the last sample, and requests that have changed."""
        return {"history": [self.history.samples[-1]], **self._now(version)}

    def _now(self, version: int) -> JsonObject:
        return {
            "time": time.time(),
            "version": self.journal.version,
            "models": [
                {
                    "id": model.id,
                    "context_length": model.context_length,
                    "state": model.state,
                    **{name: model.statistics.get(name, 0) for name in ("running", "waiting", "generated_tokens")},
                    "restarts": model.statistics.get("restarts", 0),
                }
                for model in self._server.models()
            ],
            "plugins": [{name: plugin[name] for name in _OF_PLUGINS} for plugin in self._server.plugins()],
            "latency": self._latency(),
            "requests": [entry.to_json() for entry in self.journal.since(version)],
        }

    def _latency(self) -> JsonObject:
        last = self.history.samples[-1]["at"] if self.history.samples else 0.0
        found = self.journal.completed_since(last - 60.0 * self._settings.minutes)
        return {
            "first_token": _spread(entry.first_token_seconds for entry in found),
            "between_tokens": _spread(entry.between_tokens_seconds for entry in found),
        }


def _spread(values: Iterable[float | None]) -> JsonObject:
    """How many there are, and the half and the 95 % of them that take no longer than that, in seconds."""
    known = sorted(value for value in values if value is not None)
    return {"count": len(known), "p50": _percentile(known, 0.5), "p95": _percentile(known, 0.95)}


def _percentile(known: Sequence[float], share: float) -> float | None:
    return known[max(0, math.ceil(share * len(known)) - 1)] if known else None
