"""Models in memory: which are there, how they share it, and who leaves when another one is asked for.

Every model needs its weights, its activations and one sequence of its full context. What is left beyond that is shared
out evenly to those that are loaded, anew whenever one comes or goes, and holds more sequences and the prefix cache.
"""

import asyncio
import contextlib
import gc
import logging
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import mlx.core as mx

from jackfield.errors import InUseError, JackfieldError, ModelLoadError, UnavailableError
from jackfield.events import Event, EventBus
from jackfield.models.plan import MemoryPlan
from jackfield.models.registry import Entry, ServedModel
from jackfield.settings.describe import table

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""It is looked so often for models that nobody has asked for in a while."""

WAIT_SECONDS = 60.0
"""A model for which there is no room waits so long for others to be done."""

PATIENCE_SECONDS = 5.0
"""After so long those in the way take no more requests until it has had its turn."""

RESIDENCE_SECONDS = 30.0
"""But so long they may stay in any case, so that models in constant use take turns, and not request by request."""

AGAIN_SECONDS = 30.0
"""What could not be loaded is not tried again before."""

Fetch = Callable[[Entry], Path]
"""The model's folder, downloaded if need be; runs on a worker thread."""
Plan = Callable[[Entry, Path, int], MemoryPlan]
"""What a model would take of so many bytes; runs on a worker thread."""
Open = Callable[[Entry, Path, int | None], Awaitable[ServedModel]]
"""Loads a model, which may take so many bytes; None: what there is."""


@dataclass(eq=False)
class Coming:
    """A model that wants to be in memory."""

    entry: Entry
    folder: Path
    plan: MemoryPlan | None = None
    """What it would take, where there are others."""
    waited: float = 0.0
    """Seconds that it has been first in line and without room."""


class OnDemand:
    """Loads models when they are asked for, one at a time, while those that are loaded go on.

    They come in the order in which they were asked for. While the first one waits for room, others pass it that fit
    now, and would fit beside it, too: what is freed for it is not theirs.

    Args:
        entries: all models.
        fetch: see Fetch.
        plan: see Plan.
        open: see Open.
        total: tells how many bytes models may take in all, those in memory included.
        events: who hears of models that come and go.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        *,
        fetch: Fetch,
        plan: Plan,
        open: Open,  # noqa: A002 - what it does
        total: Callable[[], int],
        events: EventBus,
    ) -> None:
        self._entries = list(entries)
        self._fetch = fetch
        self._plan = plan
        self._open = open
        self._total = total
        self._events = events
        self._turn = asyncio.Lock()
        """Whoever holds it may bring models in and out."""
        self._line: list[Coming] = []
        self._returned = asyncio.Event()
        self._loads: dict[str, asyncio.Task[ServedModel]] = {}
        self._watching: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """From now on models leave when nobody has asked for them in a while."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """The end: all models leave, those that are being loaded at once."""
        tasks = [task for task in (self._watching, *self._loads.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in self._loaded():
            await model.engine.stop()

    def _loaded(self) -> list[ServedModel]:
        return [entry.served for entry in self._entries if entry.served is not None]

    # --- Coming --------------------------------------------------------------------------------------------------

    async def load(self, entry: Entry) -> ServedModel:
        """The model, in memory. Who waits for it may give up; it is loaded all the same.

        Raises:
            ModelLoadError: it cannot be loaded.
            UnavailableError: there is no room for it at the moment.
        """
        if entry.failure is not None and time.monotonic() - entry.last_used < AGAIN_SECONDS:
            # Otherwise it would keep the frames of everybody who was refused.
            raise entry.failure.with_traceback(None)
        task = self._loads.get(entry.id)
        if task is None:
            task = self._loads[entry.id] = asyncio.create_task(self._load(entry))
            task.add_done_callback(lambda _: self._loads.pop(entry.id, None))
        return await asyncio.shield(task)

    async def _load(self, entry: Entry) -> ServedModel:
        entry.loading, entry.failure = True, None
        try:
            folder = await asyncio.to_thread(self._fetch, entry)
            entry.served = await self._bring_in(Coming(entry, folder))
            entry.profile, entry.since = entry.served.profile, time.monotonic()
        except ModelLoadError as error:
            logger.error("%s cannot be loaded: %s", entry.id, error.message)
            entry.failure = error
            raise
        except JackfieldError:
            raise
        except Exception as error:
            entry.failure = load_error(entry, error)
            raise entry.failure from error
        finally:
            entry.loading, entry.progress = False, None
            entry.last_used = time.monotonic()
        if self._watching is not None:  # of the first ones somebody else tells, once there are listeners
            self._tell("model_loaded", entry, f"{entry.id} is ready.")
        return entry.served

    async def _bring_in(self, coming: Coming) -> ServedModel:
        self._line.append(coming)
        try:
            while True:
                async with self._turn:
                    if await self._makes_room(coming):
                        return await self._open_beside(coming)
                await self._wait_for_return(coming)
        finally:
            if coming is self._line[0]:
                self._reopen()
            self._line.remove(coming)
            self._returned.set()

    async def _open_beside(self, coming: Coming) -> ServedModel:
        limit = await self._share_out(coming.plan) if self._loaded() else None
        try:
            coming.entry.served = await self._open(coming.entry, coming.folder, limit)
        except BaseException:
            await self._share_out()
            raise
        return coming.entry.served

    async def _makes_room(self, coming: Coming) -> bool:
        """See to it that the model fits beside those that stay; tells whether it does now.

        Raises:
            ModelLoadError: it never will.
            UnavailableError: the others are at work for too long.
        """
        first = self._line[0]
        if coming is first and not self._loaded():
            return True
        if coming.plan is None or needs(coming.plan) > self._room():
            coming.plan = await self._planned(coming)
        if coming is not first and needs(coming.plan) > self._left_by(first):
            return False
        while (missing := self._missing(coming.plan)) > 0:
            if (idle := self._least_used(missing)) is None:
                if coming is first:
                    self._press(coming, missing)
                return False
            for one in idle:
                await self._unload(one, f"to make room for {coming.entry.id}")
        return True

    async def _planned(self, coming: Coming) -> MemoryPlan:
        """What the model would take: beside those that stay it has less context, if that makes it fit.

        Raises:
            ModelLoadError: it never fits.
        """
        plan = await asyncio.to_thread(self._plan, coming.entry, coming.folder, self._total())
        if needs(plan) <= (room := self._room()):
            return plan
        try:
            return await asyncio.to_thread(self._plan, coming.entry, coming.folder, room)
        except ModelLoadError as error:
            if not (staying := [one.id for one in self._staying()]):
                raise
            raise ModelLoadError(
                f"{coming.entry.id} does not fit beside {', '.join(staying)}, which stay in memory. {error.message}",
                suggestions=("Pin fewer models.", "Set context_length or kv_bits lower for one of them."),
            ) from error

    def _room(self) -> int:
        """Bytes that models may take beside those that stay."""
        return max(0, self._total() - sum(needs(one.served.plan) for one in self._staying() if one.served))

    def _staying(self) -> list[Entry]:
        return [one for one in self._entries if one.served is not None and one.pinned]

    def _left_by(self, first: Coming) -> int:
        """Bytes that are free once those in the first one's way have left and it is there."""
        if first.plan is None:
            return 0
        missing = self._missing(first.plan)
        return sum(needs(one.served.plan) for one in self._in_the_way(missing, 0.0) if one.served) - missing

    def _press(self, first: Coming, missing: int) -> None:
        """Nobody is done yet: after a while those in the way take no more requests, and some time it is enough."""
        if first.waited > WAIT_SECONDS:
            raise self._no_room(first.entry)
        if first.waited >= PATIENCE_SECONDS:
            self._close(missing, first.entry)

    def _missing(self, plan: MemoryPlan | None) -> int:
        held = sum(needs(model.plan) for model in self._loaded())
        return needs(plan) + held - self._total()

    def _least_used(self, missing: int) -> list[Entry] | None:
        """Those to leave so that so many bytes become free; None if that is not enough, so that nobody need leave."""
        idle = [one for one in self._entries if one.served is not None and not one.pinned and not one.loans]
        return _enough(sorted(idle, key=lambda one: (one.leaving is None, one.last_used)), missing)

    async def _wait_for_return(self, coming: Coming) -> None:
        """Wait until somebody may be done, or it is time to look again."""
        began, is_first = time.monotonic(), coming is self._line[0]
        self._returned.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(LOOK_SECONDS, WAIT_SECONDS - coming.waited + 0.001)):
                await self._returned.wait()
        coming.waited += time.monotonic() - began if is_first else 0.0

    def _in_the_way(self, missing: int, residence: float) -> list[Entry]:
        """Those to leave so that so many bytes become free, the longest there first; none if that is not enough.

        Args:
            missing: bytes.
            residence: who is at work has been there for so many seconds.
        """
        now = time.monotonic()
        able = [one for one in self._entries if one.served is not None and not one.pinned]
        able = [one for one in able if not one.loans or one.leaving or now - one.since >= residence]
        return _enough(sorted(able, key=lambda one: (bool(one.loans) and not one.leaving, one.since)), missing) or []

    def _close(self, missing: int, waiting: Entry) -> None:
        """Let those in the way take no more requests, if that makes enough room."""
        for one in self._in_the_way(missing, RESIDENCE_SECONDS):
            if one.leaving is None:
                logger.info("%s takes no more requests for now: %s waits for its room.", one.id, waiting.id)
                one.leaving = asyncio.Event()

    def _reopen(self) -> None:
        """Those that are still there take requests again, and may stay for a while; others will be loaded again."""
        for one in self._entries:
            if one.leaving is not None:
                one.leaving.set()
                one.leaving, one.since = None, time.monotonic()

    def _no_room(self, entry: Entry) -> UnavailableError:
        loaded = [one.id for one in self._entries if one.served is not None]
        return UnavailableError(
            f"There is no room for {entry.id} while {', '.join(loaded)} are at work.",
            retry_after=10,
            suggestions=("Try again when they are done.", f"Use one of those in memory: {', '.join(loaded)}."),
        )

    # --- Sharing -------------------------------------------------------------------------------------------------

    async def _share_out(self, coming: MemoryPlan | None = None) -> int | None:
        """Give everybody in memory an even share of what is left; returns how much the one to come may take."""
        loaded = self._loaded()
        plans = [model.plan for model in loaded] + ([coming] if coming else [])
        if not plans:
            return None
        spare = max(0, self._total() - sum(map(needs, plans))) // len(plans)
        await asyncio.gather(*(_resize(model, spare) for model in loaded))
        return needs(coming) + spare if coming else None

    # --- Leaving -------------------------------------------------------------------------------------------------

    def returned(self, entry: Entry) -> None:
        """A request that had the model has been answered."""
        self._returned.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if any(map(_is_left_alone, self._entries)):
                async with self._turn:
                    for entry in filter(_is_left_alone, self._entries):
                        await self._unload(entry, "nobody has asked for it in a while")
                    await self._share_out()

    async def unload(self, entry: Entry) -> None:
        """Let the model leave memory; harmless if it is not there.

        Raises:
            InUseError: it has to stay.
        """
        if entry.pinned:
            own = table("models", entry.id)
            advice = f"Set pinned = false in {own}, unless a group of processes serves it: that one stays."
            raise InUseError(entry.id, "it is pinned", advice)
        async with self._turn:
            if entry.loans:
                users = "a request uses it" if entry.loans == 1 else f"{entry.loans} requests use it"
                raise InUseError(entry.id, users)
            await self._unload(entry, "somebody asked for that")
            await self._share_out()

    async def _unload(self, entry: Entry, reason: str) -> None:
        model, entry.served = entry.served, None
        if model is None:
            return
        await model.engine.stop()
        del model
        # What is about to happen on the loop may hold on to it.
        await asyncio.sleep(0)
        await asyncio.to_thread(_collect)
        self._tell("model_unloaded", entry, f"{entry.id} is unloaded: {reason}.")

    def _tell(self, kind: str, entry: Entry, title: str) -> None:
        self._events.emit(Event(kind, "info", title, entry.id))


def load_error(entry: Entry, error: Exception) -> ModelLoadError:
    """Why a model cannot be loaded; of what nobody has foreseen, where it happened goes into the log."""
    if isinstance(error, ModelLoadError):
        return error
    logger.error("%s cannot be loaded.", entry.id, exc_info=error)
    return ModelLoadError(
        f"Loading it failed with {type(error).__name__}: {error}",
        suggestions=("See in the server's log where.", "Download the model again, or take another one."),
    )


def needs(plan: MemoryPlan | None) -> int:
    """The least that a model has to have: bytes of its weights, its activations and one sequence."""
    return plan.weights + plan.workspace + plan.sequence_bytes() if plan else 0


def _enough(leaving: list[Entry], missing: int) -> list[Entry] | None:
    """The first of them that make so much room together; None if all of them do not."""
    freed = list(accumulate((needs(one.served.plan) for one in leaving if one.served is not None), initial=0))
    count = bisect_left(freed, missing)
    return leaving[:count] if count <= len(leaving) else None


async def _resize(model: ServedModel, spare: int) -> None:
    if model.plan is None:
        return
    plan = model.plan.within(needs(model.plan) + spare)
    await model.engine.resize(plan.kv_pool, plan.prefix_cache)


def _is_left_alone(entry: Entry) -> bool:
    idle = time.monotonic() - entry.last_used
    alone = entry.served is not None and not entry.pinned and not entry.loans
    return alone and entry.unload_after is not None and idle > entry.unload_after


def _collect() -> None:
    gc.collect()
    mx.clear_cache()
