"""The live stream of events: a short memory, and those who read along."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from jackfield.errors import UnavailableError
from jackfield.hooks import Event
from jackfield_notify.level import Level, reaches
from jackfield_notify.notification import compact, event_object


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in the stream."""

    number: int
    id: str
    """Unlike the number, no other run of the server has the same."""
    event: Event

    def to_json(self) -> str:
        """What clients get."""
        return compact({"id": self.id, **event_object(self.event)})


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a client wants; what is empty lets all pass."""

    kinds: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    minimum_level: Level = "info"

    def passes(self, event: Event) -> bool:
        """Whether this is one of them."""
        return (
            reaches(event.level, self.minimum_level)
            and (not self.kinds or event.kind in self.kinds)
            and (not self.models or event.model in self.models)
        )


class TooSlowError(Exception):
    """A client has not read events before they were forgotten."""


class ClosedError(Exception):
    """No more events come."""


@dataclass(eq=False)
class Subscription:
    """One client's place in the stream. For the event loop's thread only."""

    feed: "Feed"
    wanted: Filter
    position: int
    """Of the last event that it has been given."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> list[Entry]:
        """The events since the last time, as soon as there is one.

        Raises:
            TooSlowError: some have been forgotten meanwhile.
            ClosedError: no more come.
        """
        while True:
            self.news.clear()
            entries = self.feed.after(self.position)
            if entries:
                self.position = entries[-1].number
            if wanted := [entry for entry in entries if self.wanted.passes(entry.event)]:
                return wanted
            if self.feed.closed:
                raise ClosedError
            await self.news.wait()


class Feed:
    """The last events, and who is told of new ones.

    Args:
        history: events to remember: who comes back within so many has missed none, who is slower by as many is
            sent away.
        most: clients at the same time.
    """

    def __init__(self, history: int = 1000, most: int = 64) -> None:
        self._run = time.time_ns() // 1_000_000
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=history)
        self._number = 0
        self._most = most
        self._subscriptions: set[Subscription] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    @property
    def clients(self) -> int:
        """How many read along."""
        return len(self._subscriptions)

    def publish(self, event: Event) -> None:
        """Tell everybody of an event; from any thread."""
        with self._lock:
            self._number += 1
            self._entries.append(Entry(self._number, f"{self._run}-{self._number}", event))
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Send everybody home."""
        self.closed = True
        self._wake()

    def check_room(self) -> None:
        """Refuse one client too many.

        Raises:
            UnavailableError: there are as many as may be.
        """
        if len(self._subscriptions) >= self._most:
            raise UnavailableError(
                f"{self._most} clients read the live stream already.",
                retry_after=10,
                suggestions=("Close one of them.", "Raise most_streams in [plugins.notify]."),
            )

    @contextmanager
    def subscribe(self, wanted: Filter, last_id: str | None = None) -> Iterator[Subscription]:
        """Read along, from the event after ``last_id``, or from now on."""
        self._loop = asyncio.get_running_loop()
        subscription = Subscription(self, wanted, self._position(last_id))
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def after(self, position: int) -> list[Entry]:
        """What has happened since.

        Raises:
            TooSlowError: some of it has been forgotten.
        """
        with self._lock:
            missed = self._number - position
            if missed > len(self._entries):
                raise TooSlowError
            return list(islice(self._entries, len(self._entries) - missed, None))

    def _position(self, last_id: str | None) -> int:
        """Where to go on; from the oldest known event for who names one of another run, or one that is forgotten."""
        with self._lock:
            if last_id is None:
                return self._number
            oldest = self._number - len(self._entries)
            run, _, number = last_id.partition("-")
            if run != str(self._run) or not number.isdecimal():
                return oldest
            return min(max(int(number[:18]), oldest), self._number)

    def _wake(self) -> None:
        for subscription in self._subscriptions:
            subscription.news.set()
