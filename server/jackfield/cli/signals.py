"""What the server does when it is sent a signal."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """A signal ends what goes on in this context, for as long as nobody is served; a second one kills the process."""
    before = {number: signal.signal(number, _leave) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _leave:
                signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    _let_the_next_one_kill()
    sys.exit(0)


def _let_the_next_one_kill() -> None:
    """The system does that by itself, whatever hangs here; but not to the first process, as in a container."""
    for number in ENDS:
        signal.signal(number, _die if os.getpid() == 1 else signal.SIG_DFL)


def _die(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


class Signals:
    """Listens on the event loop until the process ends; the second signal to end kills it.

    SIGHUP means two things: to read the settings again, or that the terminal is gone where the server was started.

    Args:
        reload: called at SIGHUP.
    """

    def __init__(self, reload: Callable[[], None]) -> None:
        self.reload = reload
        self._terminals = [number for number in range(3) if os.isatty(number)]
        self.ending = asyncio.Event()
        """A signal has asked for the end."""
        loop = asyncio.get_running_loop()
        for number in ENDS:
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        for number in ENDS:
            loop.remove_signal_handler(number)
        _let_the_next_one_kill()
        self.ending.set()

    def _hang_up(self) -> None:
        if all(map(os.isatty, self._terminals)):
            self.reload()
        elif not self.ending.is_set():
            self._end()

    async def unless_ending(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do some work; False if a signal came before it was done, and it was cancelled."""
        task, ending = asyncio.create_task(work), asyncio.create_task(self.ending.wait())
        await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.wait({task})
        return False
