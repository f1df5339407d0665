"""The requests that wait, in the order in which they will be served."""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from jackfield.engine.sequence import Sequence

PASSING_SECONDS = 10.0
"""By how much a request may be behind the first one in rank and still pass it, as long as only that has no room."""

PASSING_REQUESTS = 8
"""How many are looked at, so that a long queue does not hold up every step."""


def _rank(sequence: Sequence) -> float:
    return sequence.rank


@dataclass(slots=True)
class WaitingQueue:
    """Sequences by rank: priority, and seconds of waiting against it. Equal ranks keep the order of arrival."""

    _sequences: list[Sequence] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def first(self) -> Sequence | None:
        """Whose turn it is."""
        return self._sequences[0] if self._sequences else None

    def candidates(self) -> Iterator[Sequence]:
        """Who may go next, by rank: the first, and those not far behind, which may be small enough to pass it.

        Nobody who comes later than PASSING_SECONDS after the first passes it, so it does not wait for ever.
        """
        for sequence in islice(self._sequences, PASSING_REQUESTS):
            if sequence.rank <= self._sequences[0].rank + PASSING_SECONDS:
                yield sequence

    def put(self, sequence: Sequence) -> None:
        """Add a sequence at its place."""
        bisect.insort(self._sequences, sequence, key=_rank)

    def take(self, sequence: Sequence) -> Sequence:
        """Remove one that is there; returns it."""
        self._sequences.remove(sequence)
        return sequence

    def remove(self, leaves: Callable[[Sequence], bool]) -> list[Sequence]:
        """Remove all that ``leaves`` says so of; returns them."""
        leaving = [sequence for sequence in self._sequences if leaves(sequence)]
        if leaving:
            self._sequences = [sequence for sequence in self._sequences if not leaves(sequence)]
        return leaving

    def clear(self) -> None:
        """Remove all."""
        self._sequences.clear()
