"""An answer of which the beginning is known before the client hears anything, so that somebody else can still try."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from jackfield.answer import Answer, Progress
from jackfield.backends.cascade import Cascade
from jackfield.backends.plugged import PluggedAnswer
from jackfield.backends.upstream_answer import UpstreamAnswer
from jackfield.choice import Delta
from jackfield.engine.request import GenerationRequest
from jackfield.exchange import Exchange
from jackfield.protocol.extension import EndedBy, Extension
from jackfield.protocol.usage import Usage

AHEAD = 16
"""Parts that are read before somebody takes them."""


class Begun:
    """Reads ahead; then it is the answer that was given.

    Args:
        answer: whose beginning is awaited.
    """

    def __init__(self, answer: "AnyAnswer") -> None:
        self._answer = answer
        self._read: deque[Delta | Progress] = deque()
        self._coming: asyncio.Queue[Delta | Progress | Exception | None] = asyncio.Queue(AHEAD)
        self._reading: asyncio.Task[None] | None = None
        self._over = False
        self.exchange: Exchange = answer.exchange

    async def begin(self, seconds: float | None) -> None:
        """Wait for the first words, but no longer than so many seconds; without a limit for all of them.

        Raises:
            JackfieldError: there are none.
        """
        self._reading = asyncio.create_task(self._read_ahead())
        try:
            async with asyncio.timeout(seconds) as limit:
                while seconds is None or not any(isinstance(part, Delta) for part in self._read):
                    if (part := await self._next()) is None:
                        return
                    self._read.append(part)
        except TimeoutError:
            if not limit.expired():
                raise

    async def _read_ahead(self) -> None:
        """All of it, in one task: what a generator opens it must close in the same one."""
        try:
            async with aclosing(aiter(self._answer)) as parts:
                async for part in parts:
                    await self._coming.put(part)
        except Exception as error:
            await self._coming.put(error)
        else:
            await self._coming.put(None)

    async def _next(self) -> Delta | Progress | None:
        part = await self._coming.get()
        if isinstance(part, Exception):
            raise part
        self._over = part is None
        return part

    def admit(self) -> None:
        """It is admitted."""

    async def __aiter__(self) -> AsyncGenerator[Delta | Progress, None]:
        """All of it.

        Raises:
            Exception: it failed.
        """
        while self._read:
            yield self._read.popleft()
        while not self._over and (part := await self._next()) is not None:
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
        if self._reading is not None:
            self._reading.cancel()

    def cut_off(self, by: EndedBy = "error") -> Iterator[Delta]:
        """What is left to say when nothing more comes."""
        return self._answer.cut_off(by)

    def usage(self) -> Usage:
        """Tokens so far."""
        return self._answer.usage()

    def extension(self) -> Extension:
        """How it came about."""
        return self._answer.extension()


AnyAnswer = Answer | Cascade | PluggedAnswer | UpstreamAnswer | Begun
"""Whoever gives it."""
