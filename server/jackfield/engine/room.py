"""Who may take how much memory: the rows of the decode batch, the prompts that are read, and the prefix cache."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from jackfield.engine.batch import DecodeBatch
from jackfield.engine.memory import MemoryGuard, Pressure
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.runner import Runner
from jackfield.engine.sequence import Sequence

GROWTH = 256
"""Tokens of an answer for which there must be room before its request is let in."""

REFUSING_SECONDS = 30.0
"""While memory is nearly gone and nobody is left to make room, requests wait for so long."""


@dataclass(slots=True)
class Room:
    """Sees to it that what is held stays within the pool at every moment, and reacts to the machine's real figures.

    Everything is counted before it happens: a step with all that its rows grow by, a row before it joins, a prompt
    with its first answer tokens before it is read. What is left is the prefix cache's.

    Args:
        runner: knows what rows take.
        guard: knows the pool, and what the machine has free.
        prefix_cache: gives way to requests; its budget now is the most that it gets, until that is changed.
        batch: those who are being answered.
        reading: those whose prompts are being processed.
    """

    runner: Runner
    guard: MemoryGuard
    prefix_cache: PrefixCache
    batch: DecodeBatch
    reading: list[Sequence]
    cache_budget: int = field(init=False)
    """The most that the prefix cache ever gets."""
    _refusing_since: float | None = None

    def __post_init__(self) -> None:
        self.cache_budget = self.prefix_cache.budget

    @property
    def busy(self) -> int:
        """How many requests take memory."""
        return len(self.batch) + len(self.reading)

    @property
    def last(self) -> Sequence:
        """Who has to make room first: the last to come."""
        return max((*self.batch.sequences, *self.reading), key=lambda sequence: sequence.rank)

    # --- What is held, and what will be --------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Bytes that requests have or have been promised."""
        return self.batch.nbytes + self._promised(self.reading)

    def ahead(self, joining: Sequence | None = None) -> int:
        """The most that they will hold until everybody has one token more; ``joining`` joins the batch before that."""
        lengths = [] if joining is None else [joining.length - 1]
        return self.batch.nbytes_ahead(lengths) + self._promised(s for s in self.reading if s is not joining)

    def _promised(self, reading: Iterable[Sequence]) -> int:
        # Rows that share a slab have room to grow, which a lone one does not need.
        nbytes = self.runner.row_bytes if self.busy > 1 else self.runner.lone_row_bytes
        sequences = list(reading)
        return sum(nbytes(_length_ahead(sequence)) for sequence in sequences) + self._image_bytes(sequences)

    def _image_bytes(self, reading: Iterable[Sequence]) -> int:
        """Bytes of embeddings while prompts are read: each has those of one image at a time."""
        counts = (max((image.count for image in s.request.images), default=0) for s in reading)
        return self.runner.image_token_bytes * sum(counts)

    def could_hold(self, sequence: Sequence) -> bool:
        """Whether it fits, to its last token, when it is alone."""
        length = len(sequence.request.prompt) + sequence.request.max_tokens
        return self.runner.lone_row_bytes(length) + self._image_bytes([sequence]) <= self.guard.pool

    def admits(self, sequence: Sequence) -> bool:
        """Whether there is room for a request."""
        if not self.could_hold(sequence):
            return False
        if not self.busy:
            # Nobody else can make room, so it may have all there is.
            return self.guard.pressure < Pressure.REFUSING
        return self.guard.pressure < Pressure.SLOWING and self._with(sequence) <= self.guard.room

    def _with(self, sequence: Sequence) -> int:
        """Bytes held once it is let in: while all prompts are being read, or when they have been, whichever is more."""
        reading = [*self.reading, sequence]
        lengths = [_length_ahead(one) for one in reading]
        promised = self.batch.nbytes_ahead() + sum(map(self.runner.row_bytes, lengths)) + self._image_bytes(reading)
        return max(promised, self.batch.nbytes_ahead(lengths))

    # --- Making room ---------------------------------------------------------------------------------------------

    def relieve(self) -> None:
        """Let the prefix cache give way, and find out how short memory is."""
        lacking = self._lacking()
        room = self._left()
        self._give_way(min(room, self.prefix_cache.nbytes - lacking) if lacking else room)
        self.look()

    def look(self) -> None:
        """Find out how short memory really is."""
        self._set_pressure(self._lacking())

    @property
    def overfull(self) -> bool:
        """Whether somebody has to make room, and can."""
        return self.busy > 1 and (self.guard.room < self.ahead() or self.guard.pressure is Pressure.REFUSING)

    def lacks(self, joining: Sequence) -> bool:
        """Whether somebody has to make room before ``joining`` can join the batch: the prefix cache gives way first."""
        room = self._left(joining)
        self._give_way(min(self.prefix_cache.budget, room))
        return self.busy > 1 and room < 0

    def give_way(self) -> None:
        """Let the prefix cache have no more than is left now."""
        self._give_way(min(self.prefix_cache.budget, self._left()))

    def _left(self, joining: Sequence | None = None) -> int:
        """What requests leave of the pool; negative for what is missing."""
        left = self.guard.room - self.ahead(joining)
        if left >= 0:
            return left
        self.batch.trim()
        return self.guard.room - self.ahead(joining)

    def _give_way(self, room: int) -> None:
        """Let the prefix cache have its budget, or the room that is left."""
        budget = max(0, min(self.cache_budget, room))
        if budget != self.prefix_cache.budget:
            self.prefix_cache.budget = budget

    # --- How short memory is -------------------------------------------------------------------------------------

    def _lacking(self) -> int:
        """Bytes that are missing, once what MLX keeps for later has been given back."""
        lacking = self.guard.lacking()
        if lacking:
            self.runner.release()
            lacking = self.guard.lacking(fresh=True)
        return lacking

    def _set_pressure(self, lacking: int) -> None:
        if lacking:
            self.guard.pressure = Pressure.REFUSING if self.guard.critical else Pressure.SLOWING
        else:
            cramped = self.prefix_cache.budget < self.cache_budget
            self.guard.pressure = Pressure.EVICTING if cramped else Pressure.NONE
        if self.guard.pressure is not Pressure.REFUSING:
            self._refusing_since = None
        elif self._refusing_since is None:
            self._refusing_since = self.guard.clock()

    @property
    def refused_for_long(self) -> bool:
        """Whether memory has been nearly gone for so long that it may not come back."""
        since = self._refusing_since
        return since is not None and self.guard.clock() - since > REFUSING_SECONDS


def _length_ahead(sequence: Sequence) -> int:
    """Tokens for which there must be room: the answer's first ones included, or all if there are fewer."""
    return min(sequence.length + GROWTH, len(sequence.request.prompt) + sequence.request.max_tokens)
