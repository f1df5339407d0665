"""Keeps what plugins are told: events, and the records of requests."""

import threading
from collections.abc import Callable
from typing import TypeVar

from jackfield.hooks import Event, LogRecord, hookimpl

NAME = "jackfield-testing"
WAIT_SECONDS = 60.0

Told = TypeVar("Told", Event, LogRecord)


class Recorder:
    """A plugin that remembers everything. Its lists may be read from any thread."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.records: list[LogRecord] = []
        self._changed = threading.Condition()

    @hookimpl
    def on_event(self, event: Event) -> None:
        """Keep it."""
        self._keep(self.events, event)

    @hookimpl
    def log_record(self, record: LogRecord) -> None:
        """Keep it."""
        self._keep(self.records, record)

    def _keep(self, kept: list[Told], one: Told) -> None:
        with self._changed:
            kept.append(one)
            self._changed.notify_all()

    def wait_for(self, kept: list[Told], wanted: Callable[[Told], bool], what: str) -> Told:
        """The last one in ``kept`` that is ``wanted``, as soon as there is one.

        Raises:
            AssertionError: none came in time.
        """

        def find() -> Told | None:
            return next(filter(wanted, reversed(kept)), None)

        with self._changed:
            found = self._changed.wait_for(find, WAIT_SECONDS)
        if found is None:
            raise AssertionError(f"{what} did not come; there were: {', '.join(str(one.kind) for one in kept) or '-'}")
        return found
