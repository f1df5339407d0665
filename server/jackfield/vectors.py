"""The vectors of one request's texts: submits them to the engine, batch by batch, and puts together what comes back."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jackfield.engine.request import EmbeddingEvent, EmbeddingRequest, EngineEvent, FinishEvent
from jackfield.models.registry import ServedModel

BATCH_TOKENS = 4096
"""Texts of no more than so many tokens are one request to the engine. A batch ends soon, and the next one waits in line
again, so that neither conversations nor other texts wait for all of a long list."""


@dataclass
class Vectors:
    """Takes one place in the engine all along. Call ``cancel`` when nobody waits any more.

    Args:
        model: whose vectors they are.
        name: of the request; its batches are named after it.
        texts: token ids, at least one of each.
        priority: as for `EmbeddingRequest`.
        deadline: as for `EmbeddingRequest`.
    """

    model: ServedModel
    name: str
    texts: Sequence[tuple[int, ...]]
    priority: int = 0
    deadline: float | None = None
    _current: str = ""
    _events: asyncio.Queue[list[EngineEvent]] = field(init=False, default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self._current = f"{self.name}-0"

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self.texts))

    def admit(self) -> None:
        """Make sure that the engine takes the request.

        Raises:
            UnavailableError: it does not.
        """
        self.model.engine.admit([self._current])

    async def collect(self) -> NDArray[np.float32]:
        """All of them, [texts, width], in the order of the texts.

        Raises:
            JackfieldError: the engine failed, or the request's time was over.
        """
        vectors = np.zeros((len(self.texts), self.model.embedding.width), np.float32)
        for number, batch in enumerate(self._batches()):
            self._current = f"{self.name}-{number}"
            vectors[batch] = await self._read([self.texts[index] for index in batch])
        return vectors

    def _batches(self) -> Iterator[list[int]]:
        """Texts of similar length together, by their places."""
        batch: list[int] = []
        tokens = 0
        for index in sorted(range(len(self.texts)), key=lambda index: len(self.texts[index])):
            if batch and tokens + len(self.texts[index]) > BATCH_TOKENS:
                yield batch
                batch, tokens = [], 0
            batch.append(index)
            tokens += len(self.texts[index])
        yield batch

    async def _read(self, texts: list[tuple[int, ...]]) -> NDArray[np.float32]:
        request = EmbeddingRequest(
            self._current, tuple(texts), self.model.embedding.pooling, self.priority, self.deadline
        )
        self.model.engine.submit(request, self._events.put_nowait)
        found: NDArray[np.float32] | None = None
        while True:
            for event in await self._events.get():
                if isinstance(event, EmbeddingEvent):
                    found = event.vectors
                if isinstance(event, FinishEvent):
                    if event.error is not None:
                        raise event.error
                    assert found is not None  # noqa: S101 - comes before the end
                    return found

    def cancel(self) -> None:
        """Stop the work; harmless at its end."""
        self.model.engine.cancel([self._current])
