"""What plugins are told off the path of any answer: one after the other, each at its own speed."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from jackfield.hooks.dispatcher import Dispatcher, Implementation

CAPACITY = 1000
"""Messages that wait for a plugin; when there are more, the oldest are lost, and counted as a failure."""


class Mailbox:
    """Messages for one function of one plugin. For the event loop's thread only."""

    def __init__(self, dispatcher: Dispatcher, implementation: Implementation) -> None:
        self._dispatcher = dispatcher
        self._implementation = implementation
        self._waiting: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(CAPACITY)
        self._reader: asyncio.Task[None] | None = None

    def put(self, message: Mapping[str, Any]) -> None:
        """Tell it when it has time."""
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        if self._waiting.full():
            self._waiting.get_nowait()
            self._waiting.task_done()
            self._dispatcher.failed(self._implementation, OverflowError(f"more than {CAPACITY} messages wait for it"))
        self._waiting.put_nowait(message)

    async def close(self, seconds: float) -> None:
        """Let it read what waits, for so long."""
        if self._reader is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._waiting.join(), seconds)
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        while True:
            message = await self._waiting.get()
            with contextlib.suppress(Exception):  # counted and logged
                if self._implementation.plugin.active:
                    await self._dispatcher.call(self._implementation, message)
            self._waiting.task_done()
