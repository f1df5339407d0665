"""A circuit breaker: who fails again and again is left alone for a while, and then tried with one request."""

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Counts the failures of one upstream.

    Closed it lets everything through. So many failures in a window open it. After a rest, up to a fifth longer so that
    not everybody comes back at once, it is half open: one request may try, and its outcome closes it or opens it again.

    Args:
        failures: how many open it.
        window: seconds in which they count.
        rest: seconds for which it stays open.
        clock: in seconds.
        chance: from 0 to 1.
    """

    def __init__(
        self,
        *,
        failures: int,
        window: float,
        rest: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._most = failures
        self._window = window
        self._rest = rest
        self._clock = clock
        self._chance = chance
        self._failures: deque[float] = deque(maxlen=failures)
        self._opens_at: float | None = None
        self._probe: Attempt | None = None

    @property
    def state(self) -> State:
        """How it stands."""
        if self._opens_at is None:
            return "closed"
        return "open" if self._clock() < self._opens_at else "half_open"

    @property
    def lets_through(self) -> bool:
        """Whether a request may try now."""
        return self.state == "closed" or (self.state == "half_open" and self._probe is None)

    @property
    def is_well(self) -> bool:
        """Whether it is closed, or nothing has failed for a whole window: somebody has to find out about it."""
        return self._opens_at is None or self._clock() - self._failures[-1] > self._window

    @property
    def seconds(self) -> float:
        """Until somebody may try again."""
        return 0.0 if self._opens_at is None else max(0.0, self._opens_at - self._clock())

    def begin(self) -> "Attempt | None":
        """A request tries; None if it must not."""
        if not self.lets_through:
            return None
        attempt = Attempt(self)
        if self.state == "half_open":
            self._probe = attempt
        return attempt

    def spoke(self, attempt: "Attempt") -> None:
        """It is being answered, which is all that a probe is to find out."""
        if attempt is self._probe:
            self._probe = None
            self._close()

    def ended(self, attempt: "Attempt", *, well: bool | None) -> None:
        """How it went; None if that cannot be told, since the client hung up."""
        probes = attempt is self._probe
        if probes:
            self._probe = None
        if self._opens_at is not None and not probes:
            # It began before, and says nothing new.
            return
        if well and probes:
            self._close()
        elif well is False:
            self._count(probes)

    def _close(self) -> None:
        self._opens_at = None
        self._failures.clear()

    def _count(self, probes: bool) -> None:
        now = self._clock()
        self._failures.append(now)
        if probes or (len(self._failures) == self._most and now - self._failures[0] <= self._window):
            self._opens_at = now + self._rest * (1 + self._chance() / 5)


class Attempt:
    """One request's way through a breaker. The first outcome counts."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._ended = False

    def spoke(self) -> None:
        """It has a first token; how it ends is still to be told."""
        self._breaker.spoke(self)

    def succeeded(self) -> None:
        """It was answered."""
        self._end(True)

    def failed(self) -> None:
        """The upstream is to blame."""
        self._end(False)

    def abandoned(self) -> None:
        """Nobody waits any more; harmless once it has ended."""
        self._end(None)

    def _end(self, well: bool | None) -> None:
        if not self._ended:
            self._ended = True
            self._breaker.ended(self, well=well)
