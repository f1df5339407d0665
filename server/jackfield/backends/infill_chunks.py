"""From the events that llama.cpp streams for ``/infill`` to an answer's deltas."""

from collections.abc import Sequence
from typing import Any

from jackfield.backends.chunks import Chunks
from jackfield.choice import AnswerFinish, Delta
from jackfield.engine.request import TokenEvent
from jackfield.protocol.base import JsonObject
from jackfield.protocol.usage import Usage


class InfillChunks(Chunks):
    """Reads such events: each is more of one text, and the last one of each tells all numbers."""

    def _parts(self, chunk: JsonObject) -> Sequence[dict[str, Any]]:
        return [chunk]

    def _delta(self, one: dict[str, Any]) -> Delta:
        index, text = int(one.get("index", 0)), one.get("content", "")
        if index < 0 or not isinstance(text, str):
            raise ValueError(index)
        choice = self._choices[index]
        if one.get("stop"):
            choice.finish = self._end(one)
        return Delta(
            index,
            (text,) if text else (),
            tuple(TokenEvent(int(token)) for token in one.get("tokens") or ()),
            finish_reason=choice.finish if one.get("stop") else None,
            stop_string=one.get("stopping_word") or None,
        )

    def _end(self, one: dict[str, Any]) -> AnswerFinish:
        self.truncated = self.truncated or bool(one.get("truncated"))
        generated = self.usage.completion_tokens + int(one.get("tokens_predicted") or 0)
        cached = int((one.get("timings") or {}).get("cache_n") or 0)
        self.usage = Usage.of(prompt=int(one.get("tokens_evaluated") or 0), completion=generated, cached=cached)
        return "length" if one.get("stop_type") == "limit" else "stop"
