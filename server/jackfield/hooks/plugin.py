"""One plugin: what it is, how it does, and the thread that its plain functions run on."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

State = Literal["active", "failed", "disabled"]
"""``failed``: it could not be loaded or started; ``disabled``: it failed too often."""

KEPT_ERRORS = 20

MOST_ABANDONED = 8
"""Threads that may hang for one plugin; then it is not called any more before one of them returns."""

Result = TypeVar("Result")


@dataclass(slots=True)
class Counts:
    """How one of a plugin's hooks has done."""

    calls: int = 0
    failures: int = 0
    in_a_row: int = 0
    """Failures since it last succeeded."""
    seconds: float = 0.0
    """Spent in it, and waiting for it."""


@dataclass(slots=True)
class _Job:
    work: Callable[[], Any]
    result: "Future[Any]"
    limit: float
    """Seconds it may run."""


class PluginThread:
    """Runs a plugin's plain functions one after the other, so that they need no locks among themselves.

    A thread that hangs cannot be ended: it is abandoned, and what waited behind it goes on in a new one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: tuple[_Job, float] | None = None
        self._abandoned = 0

    def submit(self, work: Callable[[], Result], limit: float) -> "Future[Result]":
        """Have ``work`` done, which may run for ``limit`` seconds; cancel the future to withdraw it.

        Raises:
            RuntimeError: too many of the plugin's threads hang.
        """
        if self._abandoned >= MOST_ABANDONED:
            raise RuntimeError(f"{MOST_ABANDONED} of its threads hang")
        job = _Job(work, Future(), limit)
        self._jobs.put(job)
        with self._lock:
            if self._thread is None:
                self._begin()
        return job.result

    @property
    def waiting(self) -> int:
        """How much there is to do."""
        return self._jobs.qsize()

    def replace_if_hung(self) -> bool:
        """Go on in another thread if what runs now has run too long; tells whether it has."""
        with self._lock:
            running = self._running
            hung = running is not None and time.monotonic() - running[1] > running[0].limit
            if hung:
                self._abandoned += 1
                self._begin()
            return hung

    def _begin(self) -> None:
        # A daemon, since the process must be able to end while a plugin hangs.
        self._running = None
        self._thread = threading.Thread(target=self._run, name=f"jackfield-plugin-{self._name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if not job.result.set_running_or_notify_cancel():
                continue
            self._running = job, time.monotonic()
            _do(job)
            with self._lock:
                if threading.current_thread() is not self._thread:
                    self._abandoned -= 1  # it hung, and another one has taken over
                    return
                self._running = None


def _do(job: _Job) -> None:
    try:
        result = job.work()
    except Exception as error:
        if isinstance(error, CancelledError):
            # Whoever waits would take it for his own.
            error = RuntimeError("it was cancelled by itself")
        job.result.set_exception(error)
    except BaseException as error:
        # What would end this thread, or pass for a cancellation of whoever waits.
        job.result.set_exception(RuntimeError(f"it raised {type(error).__name__}"))
    else:
        job.result.set_result(result)


@dataclass(eq=False)
class Plugin:
    """A plugin, loaded or not."""

    name: str
    version: str = ""
    object: Any = None
    settings: BaseModel | None = None
    state: State = "active"
    hooks: tuple[str, ...] = ()
    """What it implements."""
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_ERRORS))
    """The last ones."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """By hook."""

    @cached_property
    def thread(self) -> PluginThread:
        """For its plain functions."""
        return PluginThread(self.name)

    @property
    def active(self) -> bool:
        """Whether its hooks are called."""
        return self.state == "active"

    def count(self, hook: str, seconds: float) -> None:
        """A call succeeded."""
        counts = self.counts.setdefault(hook, Counts())
        counts.calls += 1
        counts.in_a_row = 0
        counts.seconds += seconds

    def count_failure(self, hook: str, error: str, seconds: float = 0.0) -> int:
        """A call failed; tells how many have in a row."""
        counts = self.counts.setdefault(hook, Counts())
        counts.calls += 1
        counts.failures += 1
        counts.in_a_row += 1
        counts.seconds += seconds
        self.errors.append(f"{hook}: {error}")
        return counts.in_a_row

    def report(self) -> dict[str, Any]:
        """What ``GET /v1/plugins`` and ``jackfield plugins`` say; secrets are masked by their type, `SecretStr`."""
        return {
            "name": self.name,
            "version": self.version,
            "state": self.state,
            "hooks": list(self.hooks),
            "settings": self.settings.model_dump(mode="json") if self.settings else {},
            "errors": list(self.errors),
            "calls": sum(counts.calls for counts in self.counts.values()),
            "failures": sum(counts.failures for counts in self.counts.values()),
            "seconds": round(sum(counts.seconds for counts in self.counts.values()), 6),
        }
