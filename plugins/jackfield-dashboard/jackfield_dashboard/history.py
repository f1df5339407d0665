"""How the engines did, second by second: the numbers that charts are drawn from."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jackfield.hooks import JsonObject, ModelInfo

SECONDS = 1.0
"""From sample to sample. One costs some 20 µs a model, so they are taken whether anybody looks or not: charts are full
when the page is opened, and what happened a few minutes ago can still be seen."""

PRESSURES = ("none", "evicting", "slowing", "refusing")

_GAUGES = ("waiting", "reading", "running", "kv_bytes")
_COUNTERS = ("generated_tokens", "prompt_tokens")


class History:
    """A sample a second, of all models together.

    Args:
        models: asks how they stand.
        clock: that never jumps, in seconds.
        minutes: how far back it goes.
    """

    def __init__(self, models: Callable[[], Sequence[ModelInfo]], clock: Callable[[], float], minutes: int) -> None:
        self._models = models
        self._clock = clock
        self._seconds = 60.0 * minutes
        self._news = asyncio.Event()
        self._totals = Totals()
        self.samples: deque[JsonObject] = deque()

    async def run(self) -> None:
        """Take samples, and tell those who wait."""
        while True:
            self.sample()
            await asyncio.sleep(SECONDS)

    def sample(self) -> None:
        """Take one."""
        models = self._models()
        self._totals.add(models)
        found = {"at": round(self._clock(), 2), **_gauges([one.statistics for one in models]), **self._totals.told()}
        found["tokens_per_second"] = _rate(self.samples[-1] if self.samples else None, found)
        self.samples.append(found)
        while self.samples[0]["at"] < found["at"] - self._seconds:
            self.samples.popleft()
        self._news.set()
        self._news = asyncio.Event()

    async def next(self) -> None:
        """Wait for the next sample."""
        await self._news.wait()


class Totals:
    """What all models have counted, also those that have left memory meanwhile: in a new engine counts begin at 0."""

    def __init__(self) -> None:
        self._before: dict[str, Counter[str]] = {}
        self._sums: Counter[str] = Counter()

    def add(self, models: Iterable[ModelInfo]) -> None:
        """Take what has been counted since the last time."""
        for model in models:
            now = _counts(model.statistics)
            before = self._before.get(model.id, Counter())
            anew = any(now[name] < count for name, count in before.items())
            self._sums.update(now if anew else now - before)
            self._before[model.id] = now

    def told(self) -> JsonObject:
        """``cached_tokens`` are by tier."""
        cached = {name[1:]: count for name, count in self._sums.items() if name.startswith(_TIER)}
        return {**{name: self._sums[name] for name in _COUNTERS}, "cached_tokens": cached}


_TIER = "/"
"""Before the name of a tier, among other counts."""


def _counts(statistics: Mapping[str, Any]) -> Counter[str]:
    found = Counter({name: statistics.get(name, 0) for name in _COUNTERS})
    found.update({_TIER + tier: count for tier, count in statistics.get("cached_tokens", {}).items()})
    return found


def _gauges(statistics: Sequence[Mapping[str, Any]]) -> JsonObject:
    """How all engines stand together; ``cache_bytes`` is by tier."""
    cache: Counter[str] = Counter()
    for one in statistics:
        cache.update(one.get("cache_bytes", {}))
    return {
        **{name: sum(one.get(name, 0) for one in statistics) for name in _GAUGES},
        "cache_bytes": dict(cache),
        # What the device holds is the same whoever is asked, and so is how short memory is.
        "device_bytes": max((one.get("device_bytes", 0) for one in statistics), default=0),
        "pressure": max((one.get("pressure", "none") for one in statistics), key=_level, default="none"),
    }


def _level(pressure: str) -> int:
    return PRESSURES.index(pressure) if pressure in PRESSURES else 0


def _rate(before: JsonObject | None, now: JsonObject) -> float:
    """Generated tokens a second since the sample before."""
    if before is None or now["at"] <= before["at"]:
        return 0.0
    tokens: int = now["generated_tokens"] - before["generated_tokens"]
    seconds: float = now["at"] - before["at"]
    return round(tokens / seconds, 2)
