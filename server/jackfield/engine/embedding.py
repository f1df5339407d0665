"""One request for embeddings on its way through the engine.

To the scheduler it is a prompt that is read, a slice at a time, and not answered: it waits in the same queue, takes
memory like others, makes room, is cancelled and fails like them.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jackfield.engine.request import EmbeddingRequest, GenerationRequest, SamplingParameters
from jackfield.engine.runner import Cache, Runner
from jackfield.engine.sequence import Sequence

Vector = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Embedding(Sequence):
    """A request for embeddings, and what has been computed for it.

    Inputs that fit in a slice go through the network several at a time, and need no caches. A longer one is read in
    parts, with caches; there is room for the longest of all, which counts as the prompt.
    """

    asked: EmbeddingRequest = field(kw_only=True)
    unread: int = 0
    """Tokens of all inputs that have not been read."""
    _left: list[int] = field(default_factory=list)
    """Inputs that have not been read, the longest last."""
    _vectors: dict[int, Vector] = field(default_factory=dict)
    _layers: list[Cache] = field(default_factory=list)
    """Caches of the input that is being read in parts, which is the last of those left."""
    _parts: list[Vector] = field(default_factory=list)
    """What has been pooled of it."""

    @classmethod
    def of(cls, asked: EmbeddingRequest) -> "Embedding":
        """A request that has just come."""
        prompt = GenerationRequest(
            asked.id,
            max(asked.inputs, key=len),
            max_tokens=0,
            sampling=SamplingParameters(),
            priority=asked.priority,
            deadline=asked.deadline,
        )
        left = sorted(range(len(asked.inputs)), key=lambda index: len(asked.inputs[index]))
        return cls(prompt, asked=asked, unread=sum(map(len, asked.inputs)), _left=left)

    @property
    def remaining(self) -> int:
        """Tokens to process."""
        return self.unread

    def read(self, runner: Runner, size: int) -> int:
        """Send about ``size`` tokens through the network; returns how many places they took, empty ones included."""
        longest = self.asked.inputs[self._left[-1]]
        if self._parts or len(longest) > size:
            return self._read_part(runner, longest, size)
        return self._read_group(runner, size // len(longest))

    def _read_part(self, runner: Runner, tokens: tuple[int, ...], size: int) -> int:
        if not self._parts:
            self._layers = runner.start()
            runner.reserve(self._layers, len(tokens))
        part = tokens[self.processed : self.processed + size]
        self._parts.append(runner.embed([part], self.asked.pooling, self._layers)[0])
        self.processed += len(part)
        self.unread -= len(part)
        if self.processed == len(tokens):
            whole = self._parts[-1] if self.asked.pooling == "last" else np.sum(self._parts, axis=0)
            self._vectors[self._left.pop()] = whole
            self._forget_part()
        return len(part)

    def _read_group(self, runner: Runner, rows: int) -> int:
        """The longest that are left, no more than ``rows``, none of them less than half as long as the others."""
        lengths = {index: len(self.asked.inputs[index]) for index in self._left[-rows:]}
        longest = lengths[self._left[-1]]
        group = [index for index, length in lengths.items() if 2 * length >= longest]
        pooled = runner.embed([self.asked.inputs[index] for index in group], self.asked.pooling)
        self._vectors.update(zip(group, pooled, strict=True))
        del self._left[-len(group) :]
        self.unread -= sum(lengths[index] for index in group)
        return len(group) * longest

    def preempt(self) -> None:
        """Forget the input that was being read in parts."""
        Sequence.preempt(self)
        self.unread = sum(len(self.asked.inputs[index]) for index in self._left)
        self._forget_part()

    def _forget_part(self) -> None:
        self._layers, self._parts, self.processed = [], [], 0

    def vectors(self) -> Vector:
        """All of them, [inputs, width], of length 1; once nothing remains.

        Raises:
            FloatingPointError: some are no numbers.
        """
        sums = np.stack([self._vectors[index] for index in range(len(self.asked.inputs))]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            vectors: Vector = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise FloatingPointError("a vector is no number")
        return vectors
