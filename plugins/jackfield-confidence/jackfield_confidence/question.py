"""What an answer is an answer to, as far as the score needs to know: the words of a short question."""

import re
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jackfield.hooks import JsonObject

LONGEST_TEXT = 4000
"""Characters of a message that are looked at."""
_FUNCTION_WORDS = """the a an is are was were be of in to by for as on at from with and or not it its that this which
what who you your i"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""They say nothing by themselves. In other languages than English, these words count as new."""
REMEMBERED = 4096
"""Questions that are kept until their answers have ended; those of the oldest requests go first."""

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Question:
    """The words of a question, in lower case; none if it is not looked at."""

    words: frozenset[str] = frozenset()

    @classmethod
    def of(cls, body: JsonObject, most_words: int) -> "Question":
        """The last thing that the user says in a request, if it has no more than ``most_words``."""
        text = _last_said(body)
        if len(text) > LONGEST_TEXT:
            return cls()
        words = [word[0].casefold() for word in islice(_WORD.finditer(text), most_words + 1)]
        return cls(frozenset(words)) if len(words) <= most_words else cls()

    def first_new(self, answer: str) -> float | None:
        """Where an answer first says something that is not in the question: the share of its text before that word.

        None if it says nothing new, as "The capital of Hanoi is Hanoi." does; 0 if the question is not known.
        """
        if not self.words:
            return 0.0
        known = self.words | FUNCTION_WORDS
        new = (word.start() for word in _WORD.finditer(answer) if word[0].casefold() not in known)
        place = next(new, None)
        return None if place is None else place / len(answer)


class Questions:
    """The questions of the requests that are being answered. In memory only."""

    def __init__(self) -> None:
        self._by_request: OrderedDict[str, Question] = OrderedDict()

    def remember(self, request_id: str, question: Question) -> None:
        """Keep it until `REMEMBERED` others have come."""
        self._by_request[request_id] = question
        self._by_request.move_to_end(request_id)
        if len(self._by_request) > REMEMBERED:
            self._by_request.popitem(last=False)

    def forget(self, request_id: str) -> None:
        """Its answers have ended."""
        self._by_request.pop(request_id, None)

    def of(self, request_id: str) -> Question:
        """A request's; one without words if it is not known."""
        return self._by_request.get(request_id, Question())


def _last_said(body: JsonObject) -> str:
    messages = body.get("messages")
    if isinstance(messages, list):
        last = messages[-1] if messages else {}
        return _text(last.get("content")) if isinstance(last, dict) and last.get("role") == "user" else ""
    return _text(body.get("prompt"))


def _text(content: Any) -> str:
    """Of a string or of parts; anything else, such as token ids, has none."""
    if isinstance(content, list):
        return " ".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""
