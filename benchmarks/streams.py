"""Streams that go on in the background, and how evenly their text comes, as those who read it feel."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from client import Target, chat
from prompts import Prompts

STREAM_TOKENS = 4096
POLL_S = 0.02

Gap = tuple[float, float]
"""When a piece of text came, and when the next one of the same answer did."""


@dataclass
class Streams:
    """Some clients, each reading one long answer after another."""

    target: Target
    answers: list[list[list[float]]]
    """When each piece came: a list for each answer of each client."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def progress(self, pieces: int) -> None:
        """Wait until every client has got so many more pieces of text.

        Raises:
            RequestFailedError: a stream broke, or whatever else a request may raise.
        """
        wanted = [count + pieces for count in self.pieces]
        while any(count < enough for count, enough in zip(self.pieces, wanted, strict=True)):
            for task in self.tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(POLL_S)

    @property
    def pieces(self) -> list[int]:
        """What each client has got so far."""
        return [sum(map(len, answers)) for answers in self.answers]

    @property
    def gaps(self) -> Iterator[Gap]:
        """All times between pieces of the same answer."""
        return (gap for answers in self.answers for arrivals in answers for gap in pairwise(arrivals))


@asynccontextmanager
async def streaming(target: Target, prompts: Prompts, clients: int, prompt_tokens: int = 60) -> AsyncIterator[Streams]:
    """Clients that read until the context ends, each with a first piece of text already."""
    streams = Streams(target, [[] for _ in range(clients)])
    try:
        for client in range(clients):
            streams.tasks.append(asyncio.create_task(keep_reading(streams, prompts, client, prompt_tokens)))
        await streams.progress(1)
        yield streams
    finally:
        for task in streams.tasks:
            task.cancel()
        await asyncio.gather(*streams.tasks, return_exceptions=True)


async def keep_reading(streams: Streams, prompts: Prompts, client: int, prompt_tokens: int) -> None:
    """Read one answer after another: a server that cannot be asked to go on may end one early."""
    own = streams.answers[client]
    while True:
        own.append([])
        prompt = prompts.of(prompt_tokens, client + len(streams.answers) * len(own))
        await chat(streams.target, prompt, STREAM_TOKENS, own[-1])


def within(gaps: Iterable[Gap], begin: float, end: float) -> list[float]:
    """Seconds of the gaps that begin and end in a window."""
    return [after - before for before, after in gaps if begin <= before and after <= end]


def touching(gaps: Iterable[Gap], begin: float, end: float) -> list[float]:
    """Seconds of the gaps of which some part is in a window: one stall may be as long as the window, or longer."""
    return [after - before for before, after in gaps if before < end and after > begin]
