"""What another server is asked, and an answer of its in one piece."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from jackfield.backends.chunks import SpokenTokens
from jackfield.backends.dialect import said
from jackfield.backends.turn import Turn
from jackfield.backends.upstream import Upstream, sendable
from jackfield.errors import DeadlineExceededError, JackfieldError
from jackfield.protocol.base import JsonObject

Answer = TypeVar("Answer")

NOT_PASSED_ON = ("jackfield", "timeout", "priority", "cache_prompt", "response_fields")
"""Fields of our own: other servers refuse what they do not know, and these are seen to here."""


@dataclass(frozen=True)
class Question:
    """What another server is asked.

    Args:
        upstream: who.
        model: what the model is called there.
        tokens: where the answer's tokens get their numbers.
        headers: that go along.
        deadline: when the answer has to end, on ``time.monotonic``'s clock.
    """

    upstream: Upstream
    model: str
    tokens: SpokenTokens
    headers: Mapping[str, str]
    deadline: float | None = None

    def body(self, document: JsonObject) -> JsonObject:
        """What is sent of a request."""
        return {name: value for name, value in document.items() if name not in NOT_PASSED_ON} | {"model": self.model}

    def along(self, headers: Mapping[str, str], *names: str) -> "Question":
        """With those of a client's headers.

        Raises:
            InvalidRequestError: one of them cannot go along.
        """
        found = {name: sendable(name, headers[name]) for name in names if name in headers}
        return replace(self, headers={**self.headers, **found})

    def seconds(self, patience: float) -> float:
        """How long it may say nothing."""
        return patience if self.deadline is None else max(0.0, min(patience, self.deadline - time.monotonic()))

    def silent(self, patience: float) -> JackfieldError:
        """It has said nothing for so long."""
        if self.deadline is None or time.monotonic() < self.deadline:
            return self.upstream.late(patience)
        return DeadlineExceededError()

    async def ask(self, path: str, document: JsonObject | None, read: Callable[[JsonObject], Answer]) -> Answer:
        """What it answers there, in one piece.

        Args:
            path: as Jackfield has it.
            document: the request; without one, the path is looked at.
            read: understands the answer, on a worker thread.

        Raises:
            UnsupportedError: it has no words for a part of the request.
            JackfieldError: it does not answer, or not as such servers do.
        """
        body: JsonObject | None = None
        if document is not None:
            path, document = said(self.upstream.settings.speaks, path, document)
            body = self.body(document)
        turn, patience = Turn(self.upstream), self.upstream.settings.first_seconds
        try:
            async with asyncio.timeout(self.seconds(patience)):
                told = await self.upstream.whole(path, body, self.headers)
            answer = await asyncio.to_thread(self._understood, read, told)
        except TimeoutError:
            error = self.silent(patience)
            turn.failed(error)
            raise error from None
        except JackfieldError as error:
            turn.failed(error)
            raise
        except BaseException:
            # Whatever it is, it waits there no more.
            turn.abandoned()
            raise
        turn.succeeded()
        return answer

    def _understood(self, read: Callable[[JsonObject], Answer], told: JsonObject) -> Answer:
        try:
            return read(told)
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
            raise self.upstream.nonsense("its answer is not as such servers' are") from None
