"""The last requests: where they are, or how they went. Numbers and names, never text."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jackfield.hooks import JsonObject, LogRecord, RequestInfo

State = Literal["waiting", "answering", "completed", "failed", "cancelled"]

LONGEST_NAME = 128
"""Characters of what clients name as they like: models, and paths that are not there."""

OWN = "/dashboard"
"""Requests of the page itself are not listed: every page that is opened without a key begins with a failure."""


@dataclass(slots=True)
class Entry:
    """One request."""

    number: int
    """Counts up; ids may come twice."""
    id: str
    time: float
    """When it came, in seconds since 1970."""
    endpoint: str
    model: str
    sender: str | None
    """The name of the key, where keys are asked for."""
    stream: bool
    state: State = "waiting"
    """``waiting`` is all the time before the first token: in the queue, and while the prompt is read."""
    slow: bool = False
    """Whether the first token took longer than the server's ``slow_seconds``."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_seconds: float | None = None
    between_tokens_seconds: float | None = None
    """From token to token, on average."""
    seconds: float | None = None
    tokens_per_second: float | None = None
    finish: Sequence[str] = ()
    """The finish reasons of its choices, each once."""
    confidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By plugin: score and label of the choice that it trusts least."""
    backend: str | None = None
    status: int | None = None
    """Of a failure, as are ``code`` and ``type``; its message is left out, since it may quote the request."""
    code: str | None = None
    type: str | None = None
    ended: float | None = None
    """On the clock of the history."""

    def to_json(self) -> JsonObject:
        """For the page."""
        return asdict(self)


class Journal:
    """Entries of the last requests, told by their records. For the event loop's thread only.

    Args:
        size: how many to keep.
        clock: that of the history, in seconds.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[tuple[str, float], Entry] = OrderedDict()
        self._changes: dict[int, int] = {}
        self._count = 0
        self.version = 0
        """Counts changes."""

    def record(self, record: LogRecord) -> None:
        """A station on a request's way."""
        if record.request.endpoint.startswith(OWN):
            return
        entry = self._entry(record.request)
        change = _STATIONS.get(record.kind)
        if change:
            change(entry, record.data)
        if entry.state in ("completed", "failed", "cancelled"):
            entry.ended = round(self._clock(), 2)
        self._changed(entry)

    def slow(self, request_id: str | None) -> None:
        """A first token took long."""
        for entry in reversed(self._entries.values()):
            if entry.id == request_id:
                entry.slow = True
                self._changed(entry)
                return

    def since(self, version: int) -> list[Entry]:
        """Those that have changed since, the oldest first."""
        return [entry for entry in self._entries.values() if self._changes[entry.number] > version]

    def completed_since(self, time: float) -> list[Entry]:
        """Those that were answered since a time of the history's clock."""
        return [one for one in self._entries.values() if one.state == "completed" and (one.ended or 0.0) >= time]

    def _entry(self, request: RequestInfo) -> Entry:
        key = (request.id, request.received)
        if key not in self._entries:
            self._count += 1
            sender = request.identity.name if request.identity else None
            names = (request.endpoint[:LONGEST_NAME], request.model[:LONGEST_NAME], sender)
            self._entries[key] = Entry(self._count, request.id, request.received, *names, request.stream)
            self._forget_oldest()
        return self._entries[key]

    def _forget_oldest(self) -> None:
        while len(self._entries) > self._size:
            _, forgotten = self._entries.popitem(last=False)
            self._changes.pop(forgotten.number, None)

    def _changed(self, entry: Entry) -> None:
        self.version += 1
        self._changes[entry.number] = self.version


# --- What stations tell ----------------------------------------------------------------------------------------------


def _received(entry: Entry, data: Mapping[str, Any]) -> None:
    entry.prompt_tokens = data.get("prompt_tokens")


def _first_token(entry: Entry, data: Mapping[str, Any]) -> None:
    entry.state = "answering"
    entry.first_token_seconds = data.get("seconds")
    entry.cached_tokens = data.get("cached_tokens")


def _completed(entry: Entry, data: Mapping[str, Any]) -> None:
    entry.state = "completed"
    for name in (
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "first_token_seconds",
        "seconds",
        "tokens_per_second",
        "backend",
    ):
        setattr(entry, name, data.get(name))
    entry.between_tokens_seconds = _between(data)
    entry.finish = tuple(dict.fromkeys(data.get("finish_reasons") or ()))
    entry.confidence = _least(data.get("confidence") or ())


def _failed(entry: Entry, data: Mapping[str, Any]) -> None:
    entry.state = "failed"
    entry.status, entry.code, entry.type = data.get("status"), data.get("code"), data.get("type")
    entry.seconds = data.get("seconds")


def _cancelled(entry: Entry, data: Mapping[str, Any]) -> None:
    entry.state = "cancelled"
    entry.completion_tokens, entry.seconds = data.get("completion_tokens"), data.get("seconds")


_STATIONS: Mapping[str, Callable[[Entry, Mapping[str, Any]], None]] = {
    "received": _received,
    "first_token": _first_token,
    "completed": _completed,
    "failed": _failed,
    "cancelled": _cancelled,
}


def _between(data: Mapping[str, Any]) -> float | None:
    """Seconds from token to token; choices that were written side by side count as one."""
    choices = len(data.get("finish_reasons") or ()) or 1
    tokens, first = (data.get("completion_tokens") or 0) / choices, data.get("first_token_seconds")
    if first is None or tokens < 2:
        return None
    writing: float = data["seconds"] - first
    return max(0.0, writing / (tokens - 1))


def _least(choices: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for plugin, said in ((plugin, said) for choice in choices for plugin, said in (choice or {}).items()):
        if plugin not in found or said["score"] < found[plugin]["score"]:
            found[plugin] = {"score": said["score"], "label": said["label"]}
    return found
