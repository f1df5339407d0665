"""The requests that wait, in the order in which they will be served."""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jackfield.engine.sequence import Sequence


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

    def put(self, sequence: Sequence) -> None:
        """Add a sequence at its place."""
        bisect.insort(self._sequences, sequence, key=_rank)

    def take(self) -> Sequence:
        """Remove the first one."""
        return self._sequences.pop(0)

    def remove(self, leaves: Callable[[Sequence], bool]) -> list[Sequence]:
        """Remove all that ``leaves`` says so of; returns them."""
        leaving = [sequence for sequence in self._sequences if leaves(sequence)]
        if leaving:
            self._sequences = [sequence for sequence in self._sequences if not leaves(sequence)]
        return leaving

    def clear(self) -> None:
        """Remove all."""
        self._sequences.clear()
