"""The engine thread: the only one that touches MLX, and the door to it for the event loop."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

from jackfield.engine.request import EngineEvent, FinishEvent, GenerationRequest
from jackfield.engine.scheduler import Events, Scheduler
from jackfield.errors import EngineError, QueueFullError

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "stopped", "failed"]


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
    """Runs a scheduler on a thread of its own.

    Args:
        load: makes the scheduler, on the engine thread, since MLX arrays must be made where they are used.
        capacity: how many requests it takes at once, being answered and waiting.
    """

    def __init__(self, load: Callable[[], Scheduler], capacity: int = 1024) -> None:
        self._load = load
        self._capacity = capacity
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._waiting: dict[str, Deliver] = {}
        self._thread = threading.Thread(target=self._run, name="jackfield-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._loaded: asyncio.Future[None]
        self.state: State = "loading"

    async def start(self) -> None:
        """Load the model; returns when it can generate.

        Raises:
            ModelLoadError: whatever ``load`` raised.
        """
        self._loop = asyncio.get_running_loop()
        self._loaded = self._loop.create_future()
        self._thread.start()
        await self._loaded

    async def stop(self) -> None:
        """End the thread; what is still being generated ends with an error."""
        self._inbox.put(Stop())
        await asyncio.to_thread(self._thread.join)

    @property
    def ready(self) -> bool:
        """Whether a token can be generated."""
        return self.state == "ready" and self._thread.is_alive()

    def admit(self, count: int) -> None:
        """Ask for room for ``count`` more requests, before anything is said to the client.

        Raises:
            EngineError: the engine does not run.
            QueueFullError: there is no room; a request of more choices than fit at all is let in when nobody waits.
        """
        self._check_running()
        if self._waiting and len(self._waiting) + count > self._capacity:
            raise QueueFullError(len(self._waiting))

    def _check_running(self) -> None:
        if not self.ready:
            raise EngineError("The engine is not running.", suggestions=("Try again in a few seconds.",))

    def submit(self, request: GenerationRequest, deliver: Deliver) -> None:
        """Queue a request that was admitted. Call on the event loop.

        Raises:
            EngineError: the engine does not run any more.
        """
        self._check_running()
        self._waiting[request.id] = deliver
        self._inbox.put(Submit(request))

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Stop work on requests, which get no more events; harmless for those ended. Call on the event loop."""
        waiting = frozenset(one for one in request_ids if self._waiting.pop(one, None) is not None)
        if waiting:
            self._inbox.put(Cancel(waiting))

    def _deliver(self, events: Events) -> None:
        by_request: dict[str, list[EngineEvent]] = {}
        for request_id, event in events:
            by_request.setdefault(request_id, []).append(event)
        for request_id, own in by_request.items():
            deliver = self._waiting.get(request_id)
            if isinstance(own[-1], FinishEvent):
                self._waiting.pop(request_id, None)
            if deliver is not None:
                deliver(own)

    def _fail(self, error: EngineError) -> None:
        # All that wait, those too whose requests the engine has not taken from its inbox yet.
        waiting, self._waiting = self._waiting, {}
        self._inbox.put(Cancel(frozenset(waiting)))
        for deliver in waiting.values():
            deliver([FinishEvent("error", error)])

    # Everything below runs on the engine thread.

    def _run(self) -> None:
        try:
            scheduler = self._load()
        except BaseException as error:
            self.state = "failed"
            self._call(self._loaded.set_exception, error)
            return
        self.state = "ready"
        self._call(self._loaded.set_result, None)
        while self._turn(scheduler):
            pass
        self.state = "stopped"
        self._call(self._fail, EngineError("The server is shutting down.", retry_after=10))

    def _turn(self, scheduler: Scheduler) -> bool:
        """Take all messages and do one step; False at the end."""
        try:
            if not self._hear(scheduler):
                return False
            events = scheduler.step()
        except BaseException as error:  # also the panics of extensions written in Rust
            logger.exception("The engine failed; all its requests end.")
            scheduler.clear()
            self._call(self._fail, EngineError(f"The engine failed: {error}", suggestions=("Send it again.",)))
            return True
        if events:
            self._call(self._deliver, events)
        return True

    def _hear(self, scheduler: Scheduler) -> bool:
        """Take all messages, waiting for one when there is nothing else to do; False at the end."""
        while scheduler.idle or not self._inbox.empty():
            match self._inbox.get():
                case Submit(request):
                    scheduler.submit(request)
                case Cancel(request_ids):
                    scheduler.cancel(request_ids)
                case Stop():
                    return False
        return True

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("The event loop has ended before the engine.")
