"""The memory guard: what the engine may hold, and how short the machine really is of memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

LOOK_SECONDS = 0.25
"""The real figures are read this often at most: it takes a tenth of a millisecond."""

CAREFUL_SECONDS = 60.0
"""For so long after the device ran out of memory, less of it is used."""


class Pressure(IntEnum):
    """How short memory is, and what the engine does about it."""

    NONE = 0
    EVICTING = 1
    """The prefix cache gives way; nobody else notices."""
    SLOWING = 2
    """No new request begins until others have ended."""
    REFUSING = 3
    """New requests are refused with 503, and some of those begun have to wait."""


@dataclass(slots=True)
class MemoryGuard:
    """Compares what is held with what was planned, and what is free with what has to be.

    Args:
        pool: bytes that keys and values, of requests and of the prefix cache, may take together.
        reserve: bytes that must stay free, for what a step needs on the side.
        free: tells how many bytes are free really; safe to call on any thread.
    """

    pool: int
    reserve: int = 0
    free: Callable[[], int] = lambda: 1 << 62
    clock: Callable[[], float] = time.monotonic
    pressure: Pressure = Pressure.NONE
    _free: int = 1 << 62
    _looked: float = field(default=-1e9)
    _careful_until: float = field(default=-1e9)

    @property
    def room(self) -> int:
        """Bytes of the pool that may be used now."""
        return int(self.pool * 0.75) if self.clock() < self._careful_until else self.pool

    def lacking(self, *, fresh: bool = False) -> int:
        """Bytes that are missing from the reserve; 0 when all is well.

        Once some were missing, a quarter more than the reserve has to be free before all is well again.
        """
        now = self.clock()
        if fresh or now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._free = self.free()
        wanted = self.reserve * 5 // 4 if self.pressure > Pressure.EVICTING else self.reserve
        return max(0, wanted - self._free)

    @property
    def missing(self) -> int:
        """Bytes that were missing from the reserve when somebody looked for the last time."""
        return max(0, self.reserve - self._free)

    @property
    def critical(self) -> bool:
        """Whether more than half of the reserve is gone, so that the next step may fail."""
        return 2 * self._free < self.reserve

    def exhausted(self) -> None:
        """The device had no memory left: use less of it for a while."""
        self._careful_until = self.clock() + CAREFUL_SECONDS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted; MLX has no class of its own for that."""
    text = str(error).lower()
    words = ("out of memory", "unable to allocate", "insufficient memory", "bad_alloc", "malloc", "cudamalloc")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in text for word in words))
