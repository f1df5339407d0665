"""What a server answered."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP, whole or streamed."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    text: str
    """The body."""

    @cached_property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.text)

    @cached_property
    def chunks(self) -> list[JsonObject]:
        """The objects of a stream, in order."""
        return [json.loads(line[6:]) for line in self.text.splitlines() if _is_chunk(line)]

    @property
    def request_id(self) -> str:
        """As records and events have it."""
        return self.headers["x-request-id"]

    @property
    def content(self) -> str:
        """The text of the first choice."""
        return self.content_of(0)

    def content_of(self, choice: int) -> str:
        """The text of a choice; empty if it has none."""
        return "".join(part.get("content") or "" for part in self._parts(choice))

    @property
    def tool_calls(self) -> list[JsonObject]:
        """The first choice's; those of a stream put together."""
        calls: list[JsonObject] = []
        for piece in (piece for part in self._parts(0) for piece in part.get("tool_calls") or ()):
            if piece.get("index", len(calls)) < len(calls):
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
            else:
                calls.append({**piece, "function": dict(piece["function"])})
        return calls

    @property
    def finish_reason(self) -> str | None:
        """The first choice's."""
        return next((one["finish_reason"] for one in self._said(0) if one.get("finish_reason")), None)

    @property
    def extension(self) -> JsonObject:
        """The object ``jackfield``, which requests get that ask for it."""
        return next((answer["jackfield"] for answer in self._answers if "jackfield" in answer), {})

    @property
    def _answers(self) -> list[JsonObject]:
        """The one answer, or all chunks."""
        if self.status >= 400:
            raise AssertionError(f"the server answered {self.status}: {self.text}")
        return self.chunks if self.headers["content-type"].startswith("text/event-stream") else [self.json]

    def _said(self, choice: int) -> list[JsonObject]:
        return [one for answer in self._answers for one in answer.get("choices", ()) if one["index"] == choice]

    def _parts(self, choice: int) -> list[JsonObject]:
        """Messages, deltas, or what stands for them in completions."""
        return [one.get("message") or one.get("delta") or {"content": one.get("text")} for one in self._said(choice)]


def _is_chunk(line: str) -> bool:
    return line.startswith("data: ") and line != "data: [DONE]"
