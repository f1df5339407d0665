"""The text of a request, whatever its endpoint calls it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jackfield_logging.redaction import Redactor

_PLACES = (
    *("instructions", "system", "messages", "input", "prompt", "suffix"),
    *("input_extra", "input_prefix", "input_suffix"),
)
"""Of requests of all kinds; the second line is what editors send to ``/infill``."""
_TEXTS = ("reasoning_content", "content", "text", "refusal", "tool_calls", "function", "arguments")
_DEPTH = 8

PASSAGES = 100
"""The most passages that an excerpt shows."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Text, and who said it: a role, or the field of the request that holds it."""

    role: str
    text: str


def passages(body: dict[str, Any]) -> list[Passage]:
    """All text of a request, oldest first; images, token ids and the like are left out."""
    return [passage for place in _PLACES for passage in _within(body.get(place), place, _DEPTH)]


def excerpt(text: Sequence[Passage], redactor: Redactor, limit: int) -> dict[str, Any]:
    """Prompts as they are logged: the newest passages, ``limit`` characters in all, without secrets."""
    shown: list[dict[str, str]] = []
    for passage in text[: -PASSAGES - 1 : -1]:
        if limit <= 0:
            break
        shown.insert(0, {"role": passage.role, "text": redactor.redact(passage.text, limit)})
        limit -= len(passage.text)
    return {"passages": shown, "omitted": len(text) - len(shown)}


def _within(value: Any, role: str, depth: int) -> Iterator[Passage]:
    if isinstance(value, str):
        yield Passage(role, value)
    elif isinstance(value, dict) and depth:
        said_by = value.get("role")
        for key in _TEXTS:
            yield from _within(value.get(key), said_by if isinstance(said_by, str) else role, depth - 1)
    elif isinstance(value, list) and depth:
        for item in value:
            if not isinstance(item, int):  # token ids come in many thousands
                yield from _within(item, role, depth - 1)
