"""The engine's threads, the only ones that touch MLX, and the door to them for the event loop.

One thread works at a time. When it dies, or a step takes so long that it must hang, its requests end with an error and
another thread takes its place; a thread that hangs cannot be ended, only abandoned.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

from jackfield.engine.memory import Pressure, is_out_of_memory
from jackfield.engine.request import EngineEvent, FinishEvent, GenerationRequest, SamplingParameters
from jackfield.engine.scheduler import Events, Scheduler
from jackfield.engine.statistics import Statistics
from jackfield.errors import EngineError, MemoryPressureError, QueueFullError, UnavailableError
from jackfield.events import Event, EventBus, EventKind, Level

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "recovering", "stopped", "failed"]

REST_SECONDS = 1.0
"""An idle engine looks this often whether other programs need memory."""

STOP_SECONDS = 30.0
"""How long the end may take, with the prefix cache on its way to disk."""

RETRY_SECONDS = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Pauses before the engine is started anew: after the first failure, the second in a row, and so on."""

PROBE = GenerationRequest("probe", (0, 0), max_tokens=1, sampling=SamplingParameters(temperature=0))


@dataclass(frozen=True, slots=True)
class Submit:
    """A request for the engine."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Requests that nobody waits for any more."""

    request_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stop:
    """The end."""


Message = Submit | Cancel | Stop


Deliver = Callable[[list[EngineEvent]], None]
"""Takes the next events of one request, on the event loop; the last ones end with a FinishEvent."""


class Engine:
    """Keeps a scheduler running on a thread of its own. All methods are the event loop's.

    Args:
        load: makes the scheduler, on the engine's thread, since MLX arrays must be made where they are used; called
            again whenever a new thread has to take over.
        capacity: how many requests it takes at once, being answered and waiting.
        stall_seconds: a step that takes longer hangs.
        events: who hears of failures.
        name: the model's, for events.
    """

    def __init__(
        self,
        load: Callable[[], Scheduler],
        capacity: int = 1024,
        *,
        stall_seconds: float = 120.0,
        events: EventBus | None = None,
        name: str = "",
    ) -> None:
        self._load = load
        self._capacity = capacity
        self._stall_seconds = stall_seconds
        self._events = events or EventBus()
        self._name = name
        self._waiting: dict[str, Deliver] = {}
        self._worker: _Worker
        self._watching: asyncio.Task[None]
        self._pressed = False
        self.statistics = Statistics()
        self.state: State = "loading"

    async def start(self) -> None:
        """Load the model; returns when it can generate.

        Raises:
            ModelLoadError: whatever ``load`` raised.
        """
        try:
            await self._employ()
        except BaseException:
            self.state = "failed"
            raise
        self.state = "ready"
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End the thread; what is still being generated ends with an error."""
        self._watching.cancel()
        self._worker.inbox.put(Stop())
        await asyncio.to_thread(self._worker.thread.join, STOP_SECONDS)
        self.state = "stopped"
        self._fail(EngineError("The server is shutting down.", retry_after=10))

    @property
    def ready(self) -> bool:
        """Whether a token can be generated."""
        return self.state == "ready" and self._worker.thread.is_alive()

    def admit(self, count: int) -> None:
        """Ask for room for ``count`` more requests, before anything is said to the client.

        Raises:
            EngineError: the engine does not run.
            MemoryPressureError: the machine is short of memory.
            QueueFullError: there is no room; a request of more choices than fit at all is let in when nobody waits.
        """
        self._check_running()
        if self._worker.refuses:
            raise MemoryPressureError
        if self._waiting and len(self._waiting) + count > self._capacity:
            raise QueueFullError(len(self._waiting))

    def _check_running(self) -> None:
        if not self.ready:
            message = (
                "The engine is being started again." if self.state == "recovering" else "The engine is not running."
            )
            raise EngineError(message, suggestions=("Try again in a few seconds.",))

    def submit(self, request: GenerationRequest, deliver: Deliver) -> None:
        """Queue a request that was admitted.

        Raises:
            EngineError: the engine does not run any more.
        """
        self._check_running()
        self._waiting[request.id] = deliver
        self._worker.inbox.put(Submit(request))

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Stop work on requests, which get no more events; harmless for those ended."""
        waiting = frozenset(one for one in request_ids if self._waiting.pop(one, None) is not None)
        if waiting:
            self._worker.inbox.put(Cancel(waiting))

    # --- What the worker tells, called on the event loop ---------------------------------------------------------

    def deliver(self, worker: "_Worker", events: Events) -> None:
        """Pass on what a step brought."""
        if worker is not self._worker:
            return
        by_request: dict[str, list[EngineEvent]] = {}
        for request_id, event in events:
            by_request.setdefault(request_id, []).append(event)
        for request_id, own in by_request.items():
            deliver = self._waiting.get(request_id)
            if isinstance(own[-1], FinishEvent):
                self._waiting.pop(request_id, None)
            if deliver is not None:
                deliver(own)
        self._tell_pressure()

    def failed(self, worker: "_Worker", error: BaseException) -> None:
        """A step failed: the requests are lost."""
        if worker is not self._worker:
            return
        self.state = "recovering"
        self._tell("engine_failed", "error", f"The engine failed: {error}", error=type(error).__name__)
        self._fail(_failure(error))

    def recovered(self, worker: "_Worker") -> None:
        """After a failure, the worker has generated a token again."""
        if worker is self._worker:
            self._runs_again()

    # --- Watching over the worker --------------------------------------------------------------------------------

    async def _employ(self) -> None:
        self._worker = _Worker(self, self._load, self.statistics)
        await self._worker.start()

    async def _watch(self) -> None:
        """Replace the worker whenever it has died or hangs."""
        while True:
            await asyncio.sleep(min(1.0, self._stall_seconds / 4))
            self._tell_pressure()
            if not self._worker.thread.is_alive():
                await self._replace("it died")
            elif self._worker.busy_for() > self._stall_seconds:
                await self._replace(f"a step took longer than {self._stall_seconds:g} seconds")

    async def _replace(self, reason: str) -> None:
        self.state = "recovering"
        self._worker.abandoned = True
        self._tell("engine_failed", "error", f"The engine is started again: {reason}.")
        self._fail(_failure(RuntimeError(reason)))
        for attempt in range(1 << 30):
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            try:
                await self._employ()
                break
            except Exception:
                logger.exception("The engine cannot be started again; another attempt follows.")
        self._runs_again()

    def _runs_again(self) -> None:
        self.state = "ready"
        self.statistics.restarts += 1
        self._tell("engine_restarted", "warning", "The engine runs again.", restarts=self.statistics.restarts)

    def _fail(self, error: UnavailableError) -> None:
        # All that wait, those too whose requests the engine has not taken from its inbox yet.
        waiting, self._waiting = self._waiting, {}
        self._worker.inbox.put(Cancel(frozenset(waiting)))
        for deliver in waiting.values():
            deliver([FinishEvent("error", error)])

    def _tell(self, kind: EventKind, level: Level, title: str, **data: object) -> None:
        self._events.emit(Event(kind, level, title, self._name, data))

    def _tell_pressure(self) -> None:
        if self._worker.refuses == self._pressed:
            return
        self._pressed = self._worker.refuses
        if self._pressed:
            self._tell("memory_pressure", "warning", "Memory is short: new requests are refused.")
        else:
            self._tell("memory_pressure", "info", "Memory suffices again.")


def _failure(error: BaseException) -> UnavailableError:
    """What clients are told of an error in the engine."""
    if is_out_of_memory(error):
        return MemoryPressureError("The device ran out of memory.")
    return EngineError(f"The engine failed: {error}", suggestions=("Send it again.",))


class _Worker:
    """One thread with its scheduler. Everything but the constructor, ``start`` and the properties runs on it."""

    def __init__(self, engine: Engine, load: Callable[[], Scheduler], statistics: Statistics) -> None:
        self._engine = engine
        self._load = load
        self._statistics = statistics
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._busy_since: float | None = None
        self._scheduler: Scheduler | None = None
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.abandoned = False
        self.thread = threading.Thread(target=self._run, name="jackfield-engine", daemon=True)

    async def start(self) -> None:
        """Returns when the model is loaded; raises what loading raised."""
        self.thread.start()
        await self._loaded

    @property
    def refuses(self) -> bool:
        """Whether memory is too short for new requests."""
        scheduler = self._scheduler
        return scheduler is not None and scheduler.guard.pressure is Pressure.REFUSING

    def busy_for(self) -> float:
        """Seconds since the current step began; 0 between steps."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            scheduler = self._scheduler = self._load()
            scheduler.statistics = self._statistics
            _probe(scheduler)
        except BaseException as error:
            self._call(_settle, self._loaded, error)
            return
        self._call(_settle, self._loaded, None)
        while not self.abandoned and self._turn(scheduler):
            pass
        if not self.abandoned:
            scheduler.close()

    def _turn(self, scheduler: Scheduler) -> bool:
        """Take all messages and do one step; False at the end."""
        try:
            if not self._hear(scheduler):
                return False
            events = scheduler.step()
        except BaseException as error:  # also the panics of extensions written in Rust
            return self._recover(scheduler, error)
        finally:
            self._busy_since = None
        if events:
            self._call(self._engine.deliver, self, events)
        return True

    def _recover(self, scheduler: Scheduler, error: BaseException) -> bool:
        """After a failure: all requests end, and when the model generates a token, the thread goes on."""
        logger.error("The engine failed; all its requests end.", exc_info=error)
        self._call(self._engine.failed, self, error)
        if is_out_of_memory(error):
            scheduler.guard.exhausted()
        self._busy_since = time.monotonic()
        try:
            scheduler.clear()
            _probe(scheduler)
        except BaseException:
            logger.exception("The model does not generate any more.")
            self.abandoned = True
            return False
        self._call(self._engine.recovered, self)
        return True

    def _hear(self, scheduler: Scheduler) -> bool:
        """Take all messages, waiting for one when there is nothing else to do; False at the end."""
        while scheduler.idle or not self.inbox.empty():
            message = self._next_message()
            self._busy_since = time.monotonic()
            match message:
                case Submit(request):
                    scheduler.submit(request)
                case Cancel(request_ids):
                    scheduler.cancel(request_ids)
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


def _probe(scheduler: Scheduler) -> None:
    """Generate one token: what does not work shows now, and the first request finds everything in place.

    Raises:
        EngineError: the model runs, but not as it should.
    """
    # On the side, so that nobody takes it for somebody's request.
    counts, scheduler.statistics = scheduler.statistics, Statistics()
    scheduler.submit(PROBE)
    while not scheduler.idle:
        for _, event in scheduler.step():
            if isinstance(event, FinishEvent) and event.error is not None:
                raise event.error
    scheduler.statistics = counts


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
