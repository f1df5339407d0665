"""What Python's garbage collector need not look at, since it stays as long as the process."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """All that is made meanwhile is kept, and never looked at again.

    For imports: a look at all that a server is made of takes a tenth of a second, in which no token comes, and there
    are some while it starts. Nothing that is to go again, such as a model, may be made here.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave_to_the_system() -> None:
    """When the process ends, do not take apart what its memory goes with."""
    atexit.register(gc.freeze)
