"""An answer of which the beginning is known before the client hears anything, so that somebody else can still try."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence

from jackfield.answer import Answer, Progress
from jackfield.backends.cascade import Cascade
from jackfield.backends.upstream_answer import UpstreamAnswer
from jackfield.choice import Delta
from jackfield.engine.request import GenerationRequest
from jackfield.exchange import Exchange
from jackfield.protocol.extension import EndedBy, Extension
from jackfield.protocol.usage import Usage


class Begun:
    """Reads ahead; then it is the answer that was given.

    Args:
        answer: whose beginning is awaited.
    """

    def __init__(self, answer: "AnyAnswer") -> None:
        self._answer = answer
        self._parts = aiter(answer)
        self._read: deque[Delta | Progress] = deque()
        self._next: asyncio.Task[Delta | Progress | None] | None = None
        self.exchange: Exchange = answer.exchange

    async def begin(self, seconds: float | None) -> None:
        """Wait for the first words, but no longer than so many seconds; without a limit for all of them.

        Raises:
            JackfieldError: there are none.
        """
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while deadline is None or not any(isinstance(part, Delta) for part in self._read):
            self._next = self._next or asyncio.ensure_future(self._one())
            left = None if deadline is None else max(0.0, deadline - loop.time())
            done, _ = await asyncio.wait({self._next}, timeout=left)
            if not done:
                return
            task, self._next = self._next, None
            part = task.result()
            if part is None:
                return
            self._read.append(part)

    async def _one(self) -> Delta | Progress | None:
        return await anext(self._parts, None)

    def admit(self) -> None:
        """It is admitted."""

    async def __aiter__(self) -> AsyncIterator[Delta | Progress]:
        """All of it.

        Raises:
            Exception: it failed.
        """
        while self._read:
            yield self._read.popleft()
        if self._next is not None:
            task, self._next = self._next, None
            try:
                part = await task
            finally:
                task.cancel()
            if part is not None:
                yield part
        async for part in self._parts:
            yield part

    @property
    def requests(self) -> Sequence[GenerationRequest]:
        """One a choice."""
        return self._answer.requests

    @property
    def each(self) -> int:
        """Choices for each prompt."""
        return self._answer.each

    @property
    def ended(self) -> bool:
        """Whether all is said."""
        return self._answer.ended

    def cancel(self) -> None:
        """Nobody listens any more."""
        self._stop_reading()
        self._answer.cancel()

    def stop(self) -> None:
        """Somebody else is to answer."""
        self._stop_reading()
        self._answer.stop()

    def _stop_reading(self) -> None:
        if self._next is not None:
            self._next.cancel()

    def cut_off(self, by: EndedBy = "error") -> Iterator[Delta]:
        """What is left to say when nothing more comes."""
        return self._answer.cut_off(by)

    def usage(self) -> Usage:
        """Tokens so far."""
        return self._answer.usage()

    def extension(self) -> Extension:
        """How it came about."""
        return self._answer.extension()


AnyAnswer = Answer | Cascade | UpstreamAnswer | Begun
"""Whoever gives it."""
