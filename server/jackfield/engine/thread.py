"""The door to the engine for the event loop, and the watch over the thread behind it.

One thread works at a time. When it dies, or a step takes so long that it must hang, its requests end with an error and
another thread takes its place; a thread that hangs cannot be ended, only abandoned.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from jackfield.engine.memory import CAREFUL_SECONDS, is_out_of_memory
from jackfield.engine.request import EngineEvent, EngineRequest, FinishEvent, StartEvent
from jackfield.engine.scheduler import Events
from jackfield.engine.statistics import Statistics
from jackfield.engine.worker import LOOK_SECONDS, Cancel, HeldUpError, Load, Overdue, Resize, Submit, Worker
from jackfield.errors import EngineError, MemoryPressureError, QueueFullError, ShuttingDownError, UnavailableError
from jackfield.events import Event, EventBus, EventKind, Level

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "recovering", "stopped", "failed"]

RESERVED_SECONDS = 5.0
"""How long a place is kept for a request that was admitted and does not come."""

STOP_SECONDS = 30.0
"""How long the end may take, with the prefix cache on its way to disk."""

RESIZE_SECONDS = 10.0
"""How long somebody waits until an engine has given memory back: it does so between two steps."""

RETRY_SECONDS = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Pauses before the engine is started anew: after the first failure, the second in a row, and so on."""

GOOD_SECONDS = 60.0
"""After so long a failure is the first one again."""

LOAD_SECONDS = 600.0
"""A model that is loaded again takes no longer than this, or than a step may take if that is more."""

Deliver = Callable[[list[EngineEvent]], None]
"""Takes the next events of one request, on the event loop; the last ones end with a FinishEvent."""


class Engine:
    """Keeps a scheduler running on a thread of its own. All methods are the event loop's.

    Args:
        load: makes the scheduler, on the engine's thread; called again whenever a new thread has to take over, and
            afresh when the last one that took over did not generate.
        capacity: how many requests it takes at once, being answered and waiting.
        stall_seconds: a step that takes longer hangs.
        load_seconds: so does loading again; the first time may take as long as it likes.
        events: who hears of failures.
        name: the model's, for events.
        overdue: asked again and again whether something else on the engine's thread hangs, and what; once it has
            said so, that thread is replaced.
    """

    def __init__(
        self,
        load: Load,
        capacity: int = 1024,
        *,
        stall_seconds: float = 120.0,
        load_seconds: float | None = None,
        events: EventBus | None = None,
        name: str = "",
        overdue: Overdue = lambda _: None,
    ) -> None:
        self._load = load
        self._capacity = capacity
        self._stall_seconds = stall_seconds
        self._load_seconds = load_seconds or max(LOAD_SECONDS, stall_seconds)
        self._events = events or EventBus()
        self._name = name
        self._overdue = overdue
        self._sizes: tuple[int, int] | None = None
        """What `resize` has set, which is so for the next worker too."""
        self._waiting: dict[str, Deliver] = {}
        self._begun: set[str] = set()
        """Of those that wait, the ones that have left the queue."""
        self._draining = False
        self._reserved: dict[str, float] = {}
        """When requests were admitted that have not been submitted yet."""
        self._worker: Worker | None = None
        self._watching: asyncio.Task[None] | None = None
        self._pressed = False
        self._failures = 0
        """Attempts in a row to start anew."""
        self._employed = -math.inf
        """When the worker began to work."""
        self._exhausted = -math.inf
        """When memory was exhausted for the last time."""
        self.statistics = Statistics()
        self.state: State = "loading"
        self.trouble: str | None = None
        """Why it has failed for good."""

    async def start(self) -> None:
        """Load the model; returns when it can generate.

        Raises:
            ModelLoadError: whatever ``load`` raised.
        """
        while not await self._start_first():
            pass
        self._employed = time.monotonic()
        self.state = "ready"
        self._watching = asyncio.create_task(self._watch())

    async def _start_first(self) -> bool:
        """False if something else held the worker up, which it will not do again."""
        worker, began = self._employ(), time.monotonic()
        try:
            await worker.start(overdue=self._overdue)
        except HeldUpError as error:
            worker.abandon()
            logger.error("The model is loaded again: %s.", error)
            return False
        except BaseException:
            worker.abandon()
            if self.state != "stopped":
                self.state = "failed"
            raise
        self.statistics.load_seconds = time.monotonic() - began
        return True

    async def stop(self) -> None:
        """End the thread; what is still being generated ends with an error. Harmless whatever the state."""
        self.state = "stopped"
        self._fail(ShuttingDownError())
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._worker is None:
            return
        if self._worker.abandoned or not self._worker.loaded or self._hangs(self._worker):
            self._worker.abandon()
        else:
            await self._worker.stop(STOP_SECONDS)

    async def resize(self, pool: int, prefix_cache: int) -> None:
        """Share out the memory anew; returns when what is too much has been given back, or the engine is busy for long.

        Args:
            pool: bytes that keys and values, of requests and of the prefix cache, may take together.
            prefix_cache: bytes of them that the prefix cache may take at most.
        """
        self._sizes = pool, prefix_cache
        if self._worker is not None:
            await asyncio.wait([self._resize(self._worker, pool, prefix_cache)], timeout=RESIZE_SECONDS)

    def _resize(self, worker: Worker, pool: int, prefix_cache: int) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        worker.inbox.put(Resize(pool, prefix_cache, done))
        return done

    @property
    def ready(self) -> bool:
        """Whether a token can be generated."""
        return self.state == "ready" and self._worker is not None and self._worker.alive

    @property
    def refuses(self) -> bool:
        """Whether memory is too short for new requests."""
        return self._worker is not None and self._worker.refuses

    def admit(self, request_ids: Sequence[str]) -> None:
        """Reserve places for requests that are about to be submitted, before anything is said to the client.

        Raises:
            ShuttingDownError: no more are taken.
            EngineError: the engine does not run.
            MemoryPressureError: the machine is short of memory.
            QueueFullError: there is no room; a request of more choices than fit at all is let in when nobody waits.
        """
        if self._draining:
            raise ShuttingDownError
        self._running_worker()
        if self.refuses:
            raise MemoryPressureError(lacking=self._worker.lacking if self._worker else None)
        now = time.monotonic()
        # A client that hangs up at once leaves its places behind.
        self._reserved = {one: at for one, at in self._reserved.items() if now - at < RESERVED_SECONDS}
        taken = len(self._waiting) + len(self._reserved)
        if taken and taken + len(request_ids) > self._capacity:
            raise QueueFullError(taken, self._capacity)
        self._reserved.update(dict.fromkeys(request_ids, now))

    def _running_worker(self) -> Worker:
        if self._worker is None or not self.ready:
            message = (
                "The engine is being started again." if self.state == "recovering" else "The engine is not running."
            )
            raise EngineError(self.trouble or message, suggestions=("Try again in a few seconds.",))
        return self._worker

    def submit(self, request: EngineRequest, deliver: Deliver) -> None:
        """Queue a request that was admitted.

        Raises:
            EngineError: the engine does not run any more.
        """
        worker = self._running_worker()
        self._reserved.pop(request.id, None)
        self._waiting[request.id] = deliver
        worker.inbox.put(Submit(request))

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Stop work on requests, which get no more events; harmless for those ended."""
        ids = list(request_ids)
        for one in ids:
            self._reserved.pop(one, None)
        self._withdraw(ids)

    def drain(self) -> None:
        """Take no more requests. Those in the queue end with an error, and those that have left it go on."""
        self._draining = True
        self._fail(ShuttingDownError(), [one for one in self._waiting if one not in self._begun])

    def interrupt(self) -> None:
        """End all requests with an error."""
        self._fail(ShuttingDownError())

    def give_up(self, reason: str) -> None:
        """End all requests with an error, and do not start again: what the model needs is gone."""
        if self.state == "stopped":
            return
        self.state, self.trouble = "failed", reason
        if self._watching is not None:
            self._watching.cancel()
        self._tell("engine_failed", "error", reason)
        # Told even in the middle of a stream: whoever repeats a request finds the server ending, and then anew.
        self._fail(ShuttingDownError(reason))
        if self._worker is not None:
            self._worker.abandon()

    # --- What the worker tells, called on the event loop ---------------------------------------------------------

    def deliver(self, worker: Worker, events: Events) -> None:
        """Pass on what a step brought."""
        if not self._listens_to(worker):
            return
        by_request: dict[str, list[EngineEvent]] = {}
        for request_id, event in events:
            by_request.setdefault(request_id, []).append(event)
        for request_id, own in by_request.items():
            deliver = self._waiting.get(request_id)
            if isinstance(own[0], StartEvent):
                self._begun.add(request_id)
            if isinstance(own[-1], FinishEvent):
                self._waiting.pop(request_id, None)
                self._begun.discard(request_id)
            if deliver is not None:
                deliver(own)
        self._tell_pressure()

    def failed(self, worker: Worker, error: Exception) -> None:
        """A step failed: the requests are lost."""
        if not self._listens_to(worker):
            return
        self.state = "recovering"
        self._learn_from(error)
        self._tell("engine_failed", "error", f"The engine failed: {error}", error=type(error).__name__)
        self._fail(_failure(error))

    def recovered(self, worker: Worker) -> None:
        """After a failure, the worker has generated a token again."""
        if self._listens_to(worker):
            self._runs_again()

    def _listens_to(self, worker: Worker) -> bool:
        return worker is self._worker and not worker.abandoned and self.state != "stopped"

    # --- Watching over the worker --------------------------------------------------------------------------------

    def _employ(self, *, fresh: bool = False) -> Worker:
        careful = time.monotonic() - self._exhausted < CAREFUL_SECONDS
        self._worker = Worker(self, self._load, self.statistics, fresh=fresh, careful=careful)
        if self._sizes is not None:
            self._resize(self._worker, *self._sizes)
        return self._worker

    def _learn_from(self, error: Exception | None) -> None:
        if error is not None and is_out_of_memory(error):
            self._exhausted = time.monotonic()

    async def _watch(self) -> None:
        """Replace the worker whenever it has died or hangs."""
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, self._stall_seconds / 4))
            try:
                await self._look_after(self._worker)
            except Exception:
                logger.exception("Watching over the engine failed; it goes on.")

    async def _look_after(self, worker: Worker | None) -> None:
        self._tell_pressure()
        if worker is None or worker.abandoned or not worker.alive:
            await self._replace(worker, "it died")
        elif reason := worker.overdue(self._overdue):
            await self._replace(worker, reason)
        elif self._hangs(worker):
            await self._replace(worker, f"a step took longer than {self._stall_seconds:g} seconds")

    def _hangs(self, worker: Worker) -> bool:
        return worker.busy_for() > self._stall_seconds

    async def _replace(self, worker: Worker | None, reason: str) -> None:
        self.state = "recovering"
        if worker is not None:
            worker.abandon()
            self._learn_from(worker.error)
        self._tell("engine_failed", "error", f"The engine is started again: {reason}.")
        self._fail(_failure(RuntimeError(reason)))
        if time.monotonic() - self._employed > GOOD_SECONDS:
            self._failures = 0
        fresh = False
        while not await self._start_anew(fresh=fresh):
            # What was taken over may be damaged.
            fresh = True
        self._runs_again()

    async def _start_anew(self, *, fresh: bool) -> bool:
        """Employ another worker after a pause; False if it cannot work."""
        await asyncio.sleep(RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)])
        self._failures += 1
        worker, began = self._employ(fresh=fresh), time.monotonic()
        try:
            await worker.start(self._load_seconds, self._stall_seconds, self._overdue)
        except Exception as error:
            logger.exception("The engine cannot be started again; another attempt follows.")
            self._learn_from(error)
            worker.abandon()
            return False
        self._employed = time.monotonic()
        self.statistics.load_seconds = self._employed - began
        return True

    def _runs_again(self) -> None:
        self.state = "ready"
        self.statistics.restarts += 1
        self._tell("engine_restarted", "warning", "The engine runs again.", restarts=self.statistics.restarts)

    def _fail(self, error: UnavailableError, request_ids: Sequence[str] | None = None) -> None:
        """End requests with an error: these, or all, those too that the engine has not taken from its inbox yet."""
        for deliver in self._withdraw(list(self._waiting) if request_ids is None else request_ids):
            deliver([FinishEvent("error", error)])

    def _withdraw(self, request_ids: Sequence[str]) -> list[Deliver]:
        """Those of the requests that have not ended get no more of the engine; returns who waits for them."""
        waiting = {one: self._waiting.pop(one) for one in request_ids if one in self._waiting}
        self._begun.difference_update(waiting)
        if waiting and self._worker is not None:
            self._worker.inbox.put(Cancel(frozenset(waiting)))
        return list(waiting.values())

    def _tell(self, kind: EventKind, level: Level, title: str, **data: object) -> None:
        self._events.emit(Event(kind, level, title, self._name, data=data))

    def _tell_pressure(self) -> None:
        if self.refuses == self._pressed:
            return
        self._pressed = self.refuses
        if self._pressed:
            self._tell("memory_pressure", "warning", "Memory is short: new requests are refused.")
        else:
            self._tell("memory_pressure", "info", "Memory suffices again.")


def _failure(error: BaseException) -> UnavailableError:
    """What clients are told of an error in the engine."""
    if is_out_of_memory(error):
        return MemoryPressureError("The device ran out of memory.")
    return EngineError(f"The engine failed: {error}", suggestions=("Send it again.",))
