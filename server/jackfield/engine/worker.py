"""The engine's thread with its scheduler, the only one that touches MLX, and what it is told.

An error holds on to the frames it came through, and so to all the memory that a failed step had taken. No error
leaves this module with them, and none is kept while the thread recovers.
"""

import asyncio
import gc
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

from jackfield.engine.memory import Pressure, is_out_of_memory
from jackfield.engine.request import (
    EngineRequest,
    FinishEvent,
    GenerationRequest,
    SamplingParameters,
)
from jackfield.engine.scheduler import Events, Scheduler
from jackfield.engine.statistics import Statistics
from jackfield.errors import MemoryPressureError

logger = logging.getLogger(__name__)

REST_SECONDS = 1.0
"""An idle engine looks this often whether other programs need memory."""

LOOK_SECONDS = 1.0
"""Whoever watches over a worker looks this often, or four times within the limit."""

END_SECONDS = 10.0
"""How long a thread that has nothing more to do may take to end."""

CLEAN_UP_SECONDS = 0.1
"""What MLX may need to clean up after a thread, where the system does not tell which ones there are."""

PROBE = GenerationRequest("probe", (0, 0), max_tokens=1, sampling=SamplingParameters(temperature=0))


@dataclass(frozen=True, slots=True)
class Submit:
    """A request for the engine."""

    request: EngineRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Requests that nobody waits for any more."""

    request_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stop:
    """The end."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The memory is shared out anew."""

    pool: int
    """Bytes that keys and values, of requests and of the prefix cache, may take together."""
    prefix_cache: int
    """Bytes of them that the prefix cache may take at most."""
    done: asyncio.Future[None]
    """Tells when what is too much has been given back."""


Message = Submit | Cancel | Resize | Stop

Load = Callable[[bool], Scheduler]
"""Makes a scheduler; told whether to do so afresh, with nothing of what earlier ones used."""


Overdue = Callable[[int | None], str | None]
"""Tells what hangs on a thread of that number besides the engine itself, if anything does."""


class HeldUpError(Exception):
    """Something else than the engine hangs on its thread."""


class Listener(Protocol):
    """Who hears from a worker, on the event loop."""

    def deliver(self, worker: "Worker", events: Events) -> None:
        """A step brought events."""

    def failed(self, worker: "Worker", error: Exception) -> None:
        """A step failed: the requests are lost."""

    def recovered(self, worker: "Worker") -> None:
        """After a failure, a token was generated again."""


class Worker:
    """One thread with its scheduler. The public methods are the event loop's, all others run on the thread.

    Args:
        listener: hears what happens.
        load: makes the scheduler, on the thread, since MLX arrays must be made where they are used.
        statistics: where the scheduler counts.
        fresh: passed to ``load``.
        careful: memory was exhausted lately, so less of it is to be used.
    """

    def __init__(
        self, listener: Listener, load: Load, statistics: Statistics, *, fresh: bool = False, careful: bool = False
    ) -> None:
        self._listener = listener
        self._load = load
        self._statistics = statistics
        self._fresh = fresh
        self._careful = careful
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._busy_since: float | None = None
        self._scheduler: Scheduler | None = None
        self._thread = threading.Thread(target=self._run, name="jackfield-engine", daemon=True)
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.abandoned = False
        """Nobody listens any more: the thread ends as soon as it can, and leaves alone what it shared."""
        self.error: Exception | None = None
        """What the thread died of."""

    async def start(
        self, load_seconds: float = math.inf, stall_seconds: float = math.inf, overdue: Overdue = lambda _: None
    ) -> None:
        """Returns when a token was generated.

        Raises:
            HeldUpError: ``overdue`` says that something hangs.
            TimeoutError: it took more than ``load_seconds``, or more than ``stall_seconds`` for that token.
            Exception: whatever loading raised.
        """
        self._thread.start()
        deadline = time.monotonic() + load_seconds
        while not self._loaded.done():
            await asyncio.wait([self._loaded], timeout=min(LOOK_SECONDS, load_seconds / 4, stall_seconds / 4))
            if not self._loaded.done() and (time.monotonic() > deadline or self.busy_for() > stall_seconds):
                raise TimeoutError("loading takes too long")
            if not self._loaded.done() and (reason := self.overdue(overdue)):
                raise HeldUpError(reason)
        if self.abandoned:
            raise RuntimeError("given up while loading")
        if not self.loaded:
            # The process may end next, which must not happen while MLX cleans up after its thread.
            await asyncio.to_thread(self._see_it_end, END_SECONDS)
        self._loaded.result()

    def abandon(self) -> None:
        """Leave a thread to itself that cannot be ended, because it hangs or has nothing left to save."""
        self.abandoned = True
        self._loaded.cancel()
        self.inbox.put(Stop())
        if self._scheduler is not None:
            self._scheduler.statistics = Statistics()

    async def stop(self, seconds: float) -> None:
        """End the thread, for which it has so many seconds."""
        self.inbox.put(Stop())
        await asyncio.to_thread(self._see_it_end, seconds)

    def _see_it_end(self, seconds: float) -> None:
        """Wait for the thread's end, so many seconds at most.

        Once Python has let go of it, MLX cleans up what it kept for it, and needs the interpreter for that: a process
        that ends meanwhile aborts.
        """
        deadline = time.monotonic() + seconds
        self._thread.join(seconds)
        if sys.platform != "linux":
            time.sleep(CLEAN_UP_SECONDS)
        running = Path(f"/proc/self/task/{self._thread.native_id}")
        while running.exists() and time.monotonic() < deadline:
            time.sleep(0.001)

    def overdue(self, overdue: Overdue) -> str | None:
        """What hangs on the thread besides the engine itself, if anything does."""
        return overdue(self._thread.ident)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def loaded(self) -> bool:
        """Whether the first token was generated."""
        return self._loaded.done() and not self._loaded.cancelled() and self._loaded.exception() is None

    @property
    def refuses(self) -> bool:
        """Whether memory is too short for new requests."""
        scheduler = self._scheduler
        return scheduler is not None and scheduler.guard.pressure is Pressure.REFUSING

    @property
    def lacking(self) -> int | None:
        """Bytes of memory that are missing, as far as that is known."""
        scheduler = self._scheduler
        return None if scheduler is None else scheduler.guard.missing

    def busy_for(self) -> float:
        """Seconds since the current step began; 0 between steps, and while loading."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    # --- The thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.error = self._open()
        if self.error is None:
            self._call(_settle, self._loaded, None)
            try:
                self._work()
            finally:
                self._scheduler = None
        else:
            # Whoever hears of it may load the next model at once.
            self._scheduler = None
            gc.collect()
            self._call(_settle, self._loaded, self.error)

    def _open(self) -> Exception | None:
        """Load the model and generate a token; returns what went wrong."""
        try:
            scheduler = self._load(self._fresh)
            if self.abandoned:
                return None
            self._scheduler = scheduler
            scheduler.statistics = self._statistics
            if self._careful:
                scheduler.guard.exhausted()
            self._busy_since = time.monotonic()
            probe(scheduler)
            scheduler.rest()
        except BaseException as error:  # also the panics of extensions written in Rust
            return without_frames(error)
        finally:
            self._busy_since = None
        return None

    def _work(self) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        while self._turn(scheduler):
            pass
        if not self.abandoned and self.error is None:
            scheduler.close()

    def _turn(self, scheduler: Scheduler) -> bool:
        """Take all messages and do one step; False at the end."""
        failure: Exception | None = None
        try:
            if not self._hear(scheduler):
                return False
            events = scheduler.step()
        except BaseException as error:
            failure = self._logged("The engine failed; all its requests end.", error)
        if self.abandoned:
            return False
        if failure is not None:
            return self._recover(scheduler, failure)
        self._busy_since = None
        if events:
            self._call(self._listener.deliver, self, events)
        return True

    def _recover(self, scheduler: Scheduler, failure: Exception) -> bool:
        """After a failure: all requests end, and when the model generates a token, the thread goes on."""
        self._busy_since = time.monotonic()
        self._call(self._listener.failed, self, failure)
        if is_out_of_memory(failure):
            scheduler.guard.exhausted()
        try:
            gc.collect()
            scheduler.clear()
            probe(scheduler)
        except BaseException as error:
            self.error = self._logged("The model does not generate any more.", error)
        if self.abandoned or self.error is not None:
            return False
        self._call(self._listener.recovered, self)
        return True

    def _logged(self, message: str, error: BaseException) -> Exception:
        bare = without_frames(error)
        logger.error(message, exc_info=bare)
        return bare

    def _hear(self, scheduler: Scheduler) -> bool:
        """Take all messages, waiting for one when there is nothing else to do; False at the end."""
        while scheduler.idle or not self.inbox.empty():
            message = self._next_message()
            if self.abandoned:
                return False
            self._busy_since = time.monotonic()
            match message:
                case Submit(request):
                    scheduler.submit(_prepared(request))
                case Cancel(request_ids):
                    scheduler.cancel(request_ids)
                case Resize(pool, prefix_cache, done):
                    scheduler.resize(pool, prefix_cache)
                    self._call(_settle, done, None)
                case Stop():
                    return False
                case None:
                    scheduler.rest()
        self._busy_since = time.monotonic()
        return True

    def _next_message(self) -> Message | None:
        self._busy_since = None
        try:
            return self.inbox.get(timeout=REST_SECONDS)
        except Empty:
            return None

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("The event loop has ended before the engine.")


def _prepared(request: EngineRequest) -> EngineRequest:
    if isinstance(request, GenerationRequest) and request.prepare is not None:
        return request.prepare(request)
    return request


def probe(scheduler: Scheduler) -> None:
    """Generate one token: what does not work shows now, and the first request finds everything in place.

    When memory is too short even for that, the model is taken to run: the guard refuses requests until it suffices.

    Raises:
        EngineError: the model runs, but not as it should.
    """
    # On the side, so that nobody takes it for somebody's request.
    counts, scheduler.statistics = scheduler.statistics, Statistics()
    try:
        scheduler.submit(PROBE)
        while not scheduler.idle:
            _check(scheduler.step())
            if len(scheduler.waiting) and scheduler.guard.pressure is Pressure.REFUSING:
                scheduler.cancel(frozenset({PROBE.id}))
    finally:
        scheduler.statistics = counts


def _check(events: Events) -> None:
    for _, event in events:
        if isinstance(event, FinishEvent) and event.error and not isinstance(event.error, MemoryPressureError):
            raise event.error


def without_frames(error: BaseException) -> Exception:
    """The error without the frames it came through, which it tells as text, and as one that a future can have."""
    told = "".join(traceback.format_exception(error))
    error.__context__ = error.__cause__ = None
    bare: BaseException = error.with_traceback(None)
    if not isinstance(bare, Exception) or isinstance(bare, StopIteration):
        bare = RuntimeError(f"{type(bare).__name__}: {bare}")
    bare.add_note(told)
    return bare


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
