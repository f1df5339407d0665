"""The texts in a message: its content, the content's text parts, and the arguments of its calls."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jackfield.hooks import ChatMessage, JsonObject


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a message a text stands."""

    kind: str
    """``content``, ``part`` or ``argument``."""
    index: int = 0
    """Of the part, or of the call."""
    key: str = ""
    """Of the argument."""


def texts(message: ChatMessage) -> Iterator[tuple[Place, str]]:
    """All texts of a message; arguments are those that are strings."""
    content = message.get("content")
    if isinstance(content, str):
        yield Place("content"), content
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield Place("part", index), part["text"]
    for index, call in enumerate(calls(message)):
        for key, value in arguments(call).items():
            if isinstance(value, str):
                yield Place("argument", index, key), value


def with_texts(message: ChatMessage, new: Mapping[Place, str]) -> ChatMessage:
    """A copy of ``message`` with other texts in some places."""
    changed = dict(message)
    for place, text in new.items():
        if place.kind == "content":
            changed["content"] = text
        elif place.kind == "part":
            changed["content"] = _replaced(changed["content"], place.index, {"text": text})
        else:
            call = changed["tool_calls"][place.index]
            written = json.dumps(arguments(call) | {place.key: text}, ensure_ascii=False)
            function = call["function"] | {"arguments": written}
            changed["tool_calls"] = _replaced(changed["tool_calls"], place.index, {"function": function})
    return changed


def _replaced(items: list[JsonObject], index: int, new: JsonObject) -> list[JsonObject]:
    return [*items[:index], items[index] | new, *items[index + 1 :]]


def calls(message: ChatMessage) -> list[JsonObject]:
    """The tool calls of a message."""
    return [call for call in message.get("tool_calls") or () if isinstance(call, dict)]


def arguments(call: JsonObject) -> JsonObject:
    """The arguments of a call; none where they are not a JSON object."""
    try:
        found = json.loads((call.get("function") or {}).get("arguments") or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def plain_text(message: ChatMessage) -> str:
    """What a message says, without its calls."""
    return "\n".join(text for place, text in texts(message) if place.kind != "argument")
