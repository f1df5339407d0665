"""Carries messages from the outbox to their targets, until each has arrived or is given up."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from jackfield_notify.database import StorageError
from jackfield_notify.outbox import Message, Outbox
from jackfield_notify.targets.outcome import PermanentError, TemporaryError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
"""How often to look into the outbox anyway: a command in another process may have put something into it."""
LEASE_SLACK = 30.0
"""Seconds beyond the time limit after which a message that nobody heard of again is tried once more."""
GROWTH = 3.0

Result = Literal["delivered", "retried", "dead"]


class Sender(Protocol):
    """Who can deliver messages to one target."""

    concurrency: int
    """How many at the same time."""

    async def send(self, message: Message) -> None:
        """Try to deliver a message.

        Raises:
            TemporaryError: it has not arrived, but may later.
            PermanentError: it never will.
        """

    async def close(self) -> None:
        """Let go of connections."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between attempts, in seconds."""

    first: float
    longest: float
    chance: Callable[[], float] = random.random
    """From 0 to 1."""

    def delay(self, attempts: int, asked: float | None) -> float:
        """After so many failures, and at least what the receiver asked for."""
        grown = self.first * GROWTH ** min(attempts - 1, 64)
        return max(min(grown, self.longest) * (1 - self.chance() / 2), asked or 0.0)


class Courier:
    """Delivers to one target, so that a slow one holds up nobody else.

    Args:
        target: its name.
        sender: who can.
        outbox: where the messages are.
        backoff: how long to wait after a failure.
        clock: seconds since 1970.
        timeout: seconds that an attempt may take.
        heard: is told what became of each attempt.
    """

    def __init__(
        self,
        target: str,
        sender: Sender,
        outbox: Outbox,
        *,
        backoff: Backoff,
        clock: Callable[[], float],
        timeout: float,
        heard: Callable[[Message, Result, str], None] = lambda message, result, reason: None,
    ) -> None:
        self.target = target
        self.sender = sender
        self._outbox = outbox
        self._backoff = backoff
        self._clock = clock
        self._timeout = timeout
        self._heard = heard
        self._wanted = asyncio.Event()
        self._leaving = False

    async def run(self) -> None:
        """Deliver what becomes due, until `leave` is called."""
        while True:
            self._wanted.clear()
            last = self._leaving
            pause = await self._round()
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause)

    async def _round(self) -> float:
        """Try everything that is due; seconds until there may be more."""
        try:
            await self.deliver_due()
            due = await asyncio.to_thread(self._outbox.next_due, self.target)
        except StorageError as error:
            logger.warning("The outbox cannot be used at the moment: %s", error)
            return LOOK_SECONDS
        return LOOK_SECONDS if due is None else min(max(due - self._clock(), 0.0), LOOK_SECONDS)

    def wake(self) -> None:
        """There is something new."""
        self._wanted.set()

    def leave(self) -> None:
        """Try what is due once more, and end."""
        self._leaving = True
        self._wanted.set()

    async def deliver_due(self) -> None:
        """Try everything that is due.

        Raises:
            StorageError: the outbox cannot be used.
        """
        while messages := await asyncio.to_thread(self._lease):
            await asyncio.gather(*map(self._attempt, messages))

    def _lease(self) -> list[Message]:
        seconds = self._timeout + LEASE_SLACK
        return self._outbox.lease(self.target, self._clock(), seconds, self.sender.concurrency)

    async def _attempt(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self.sender.send(message)
        except asyncio.CancelledError:
            self._outbox.give_back(message)
            raise
        except PermanentError as error:
            await self._bury(message, str(error))
        except TemporaryError as error:
            await self._postpone(message, str(error), error.retry_after)
        except TimeoutError:
            await self._postpone(message, f"No answer within {self._timeout:g} seconds.", None)
        except Exception as error:
            logger.exception("Unexpected error while a message was sent to %s", self.target)
            await self._postpone(message, f"Unexpected error: {type(error).__name__}.", None)
        else:
            await asyncio.to_thread(self._outbox.delivered, message.id, self._clock())
            self._heard(message, "delivered", "")

    async def _postpone(self, message: Message, reason: str, asked: float | None) -> None:
        due = self._clock() + self._backoff.delay(message.attempts, asked)
        if due > message.expires:
            await self._bury(message, reason)
            return
        await asyncio.to_thread(self._outbox.retry, message.id, due, reason)
        logger.info("A message to %s has not arrived and is tried again: %s", self.target, reason)
        self._heard(message, "retried", reason)

    async def _bury(self, message: Message, reason: str) -> None:
        await asyncio.to_thread(self._outbox.dead, message.id, self._clock(), reason)
        logger.warning("A message to %s is given up after attempt %d: %s", self.target, message.attempts, reason)
        self._heard(message, "dead", reason)
