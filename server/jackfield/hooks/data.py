"""What plugins are given and what they give back: plain data, safe to keep, none of it holds text unless it says so."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jackfield.engine.request import TokenEvent

__all__ = [
    "ChatMessage",
    "Compressed",
    "Confidence",
    "Identity",
    "JsonObject",
    "LogRecord",
    "Outcome",
    "RecordKind",
    "RequestInfo",
    "Signal",
    "TextDelta",
    "TokenEvent",
]

JsonObject = dict[str, Any]
"""An object of JSON: strings, numbers, booleans, None, lists and objects of them."""

ChatMessage = JsonObject
"""A message in OpenAI's words: ``role``, ``content``, perhaps ``tool_calls`` or ``tool_call_id``."""

Signal = Literal["logprob", "entropy", "top_k"]
"""What a plugin wants to know of every token. ``logprob``: its own natural log probability. ``entropy``: of the whole
distribution, in nats. ``top_k``: the `TOP_K` most likely tokens with their log probabilities."""

TOP_K = 20

RecordKind = Literal["received", "backend", "fallback", "first_token", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request."""

    name: str
    scopes: frozenset[str] = frozenset({"inference"})
    """What the sender may do: ``inference``, ``admin``, ``metrics``."""
    priority: int = 0
    """Added to the ``priority`` that requests ask for: lower goes first."""


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request on its way through the server; the same object at every hook."""

    id: str
    """``req_<seconds since 1970>_<8 hex digits>``, or the client's ``X-Request-ID``."""
    endpoint: str
    """The path, without the prefix ``/v1``: ``/chat/completions``."""
    model: str
    """As the client wrote it."""
    stream: bool = False
    identity: Identity | None = None
    """None where nobody asks who sends requests."""
    options: Mapping[str, JsonObject] = field(default_factory=dict)
    """What the client wrote for each plugin under ``jackfield``, by the plugin's name."""
    received: float = field(default_factory=time.time)
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of an answer's text, as it is about to be sent."""

    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class Compressed:
    """A conversation that was made shorter."""

    messages: Sequence[ChatMessage]
    report: Mapping[str, Any] = field(default_factory=dict)
    """What was done, for the answer's extension object: JSON, without text of the conversation."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one choice ended, for those who judge it."""

    choice: int
    finish_reason: str
    """``stop``, ``length`` or ``tool_calls``."""
    ended_by: str
    """``stop``, ``stop_string``, ``tool_call``, ``length``, ``timeout`` or ``error``."""
    prompt_tokens: int
    compressed: bool = False
    """Whether the model saw a shortened conversation."""
    calls: int = 0
    """Tool calls in it."""
    repaired_calls: int = 0
    """Those of them that were not written as they should be."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """How far an answer can be trusted."""

    score: float
    """From 0 to 1."""
    label: str
    """In a word: ``high``, ``medium``, ``low``."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """What the score was made of."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A station on a request's way. docs/plugins.md lists what ``data`` holds for each kind."""

    kind: RecordKind
    request: RequestInfo
    data: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and names; never text of prompts or answers."""
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""
