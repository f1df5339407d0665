"""The end of a server: it takes no more work, and what is under way gets some time."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from jackfield.errors import ShuttingDownError
from jackfield.models.registry import Registry

logger = logging.getLogger(__name__)

TELL_SECONDS = 5.0
"""How often it is told what is still under way."""

LAST_SECONDS = 5.0
"""How long it may take to tell clients that their time is over."""


class Drain:
    """Counts the requests that are being answered, and sees to their end. All of it is the event loop's.

    Args:
        registry: the models whose engines are told.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._idle = asyncio.Event()
        self._idle.set()
        self._limits: set[asyncio.Timeout] = set()
        self.draining = False
        """No more work is taken."""
        self.over = False
        """And the time for what is under way has passed."""
        self.requests = 0
        """How many are being answered."""

    @contextmanager
    def work(self) -> Iterator[None]:
        """A request is answered in this context."""
        self.requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self._idle.set()

    @asynccontextmanager
    async def interrupting(self) -> AsyncIterator[None]:
        """What is waited for in this context, and in this task, ends when time is over.

        Raises:
            ShuttingDownError: it has.
        """
        try:
            async with asyncio.timeout(0 if self.over else None) as limit:
                self._limits.add(limit)
                yield
        except TimeoutError:
            if limit.expired():
                raise ShuttingDownError from None
            raise
        finally:
            self._limits.discard(limit)

    async def finish(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Take no more work, and return when what is under way is done, or has been ended after so many seconds."""
        self._begin()
        left = seconds
        while self.requests and left > 0:
            tell(f"Draining: {_requests(self.requests)}, up to {math.ceil(left)} s; a second signal ends at once.")
            await self._wait(min(TELL_SECONDS, left))
            left -= TELL_SECONDS
        if self.requests:
            tell(f"Ending {_requests(self.requests)} after {seconds:g} s.")
            self._interrupt()
            await self._wait(LAST_SECONDS)

    def _begin(self) -> None:
        self.draining = True
        for model in self._registry:
            model.engine.drain()

    def _interrupt(self) -> None:
        self.over = True
        for model in self._registry:
            model.engine.interrupt()
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            logger.debug("%d requests are still being answered.", self.requests)


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
