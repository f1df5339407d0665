"""A limit for code that nobody here has written, such as the templates that come with models."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class OvertimeError(Exception):
    """It took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OvertimeError in whatever this thread does in the context once it has taken so long.

    That happens between two instructions of Python, so a loop ends and a single call into C does not. Not for the event
    loop's thread.
    """
    thread, lock, over, fired = threading.get_ident(), threading.Lock(), False, False

    def interrupt() -> None:
        nonlocal fired
        with lock:
            if not over:
                fired = True
                _raise_in(thread)

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
        if fired:
            # It may be on its way still, and must not hit what comes next.
            with suppress(OvertimeError):
                time.sleep(0.01)


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OvertimeError))
