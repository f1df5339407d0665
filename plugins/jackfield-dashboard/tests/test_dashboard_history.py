"""What charts are drawn from: samples of all engines, taken whether anybody looks or not."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from jackfield.hooks import ModelInfo
from jackfield.testing import StartServer
from jackfield_dashboard.history import History
from jackfield_dashboard.overview import _spread


class Engines:
    """Models that stand as a test says, at a time that it says."""

    def __init__(self, *statistics: dict[str, Any]) -> None:
        self.statistics = list(statistics)
        self.now = 100.0

    def models(self) -> list[ModelInfo]:
        return [ModelInfo(str(number), 1, "ready", told) for number, told in enumerate(self.statistics)]

    def clock(self) -> float:
        return self.now


def test_samples_are_of_all_engines_together() -> None:
    one = {"running": 1, "cached_tokens": Counter(memory=3), "cache_bytes": {"memory": 10}, "device_bytes": 50}
    other = {"running": 2, "cached_tokens": Counter(disk=4), "cache_bytes": {"memory": 1}, "device_bytes": 50}
    engines = Engines({**one, "pressure": "slowing"}, {**other, "pressure": "evicting"})
    history = History(engines.models, engines.clock, 1)
    history.sample()
    (sample,) = history.samples
    assert (sample["running"], sample["waiting"]) == (3, 0)
    assert sample["cached_tokens"] == {"memory": 3, "disk": 4}
    assert sample["cache_bytes"] == {"memory": 11}
    assert (sample["device_bytes"], sample["pressure"]) == (50, "slowing")


def test_without_models_all_is_nothing() -> None:
    engines = Engines()
    history = History(engines.models, engines.clock, 1)
    history.sample()
    assert (history.samples[0]["device_bytes"], history.samples[0]["pressure"]) == (0, "none")


def test_tokens_a_second_are_those_since_the_sample_before() -> None:
    engines = Engines({"generated_tokens": 1000})
    history = History(engines.models, engines.clock, 1)
    for tokens, passed in ((1000, 0.0), (1030, 1.0), (1090, 2.0), (5, 1.0), (5, 0.0)):
        engines.statistics = [{"generated_tokens": tokens}]
        engines.now += passed
        history.sample()
    # At first nothing is known, and an engine that began anew counts from 0.
    assert [sample["tokens_per_second"] for sample in history.samples] == [0, 30, 30, 5, 0]
    assert history.samples[-1]["generated_tokens"] == 1095


def test_what_a_model_counted_stays_when_it_leaves() -> None:
    one, other = (
        {"generated_tokens": count, "prompt_tokens": count, "cached_tokens": {"memory": 1}} for count in (7, 5)
    )
    engines = Engines(one, other)
    history = History(engines.models, engines.clock, 1)
    for statistics in ([one, other], [one, {}], [one, {}], [one, other]):
        engines.statistics = statistics
        engines.now += 1
        history.sample()
    assert [sample["prompt_tokens"] for sample in history.samples] == [12, 12, 12, 17]
    assert [sample["tokens_per_second"] for sample in history.samples] == [0, 0, 0, 5]
    assert history.samples[-1]["cached_tokens"] == {"memory": 3}


def test_what_is_too_old_is_forgotten() -> None:
    engines = Engines({})
    history = History(engines.models, engines.clock, 1)
    for _ in range(100):
        history.sample()
        engines.now += 1
    assert len(history.samples) == 61


def test_those_who_wait_hear_of_the_next_sample() -> None:
    engines = Engines({})

    async def wait() -> int:
        history = History(engines.models, engines.clock, 1)
        waiting = [asyncio.create_task(history.next()) for _ in range(2)]
        await asyncio.sleep(0)
        history.sample()
        await asyncio.gather(*waiting)
        sampling = asyncio.create_task(history.run())
        await history.next()
        sampling.cancel()
        return len(history.samples)

    assert asyncio.run(asyncio.wait_for(wait(), 60)) == 2


@pytest.mark.parametrize(
    ("values", "p50", "p95"),
    [([], None, None), ([None], None, None), ([2.0, None], 2, 2), (range(1, 101), 50, 95), ([1, 2, 3], 2, 3)],
)
def test_half_and_95_percent_take_no_longer(values: Any, p50: float | None, p95: float | None) -> None:
    known = [value for value in values if value is not None]
    assert _spread(values) == {"count": len(known), "p50": p50, "p95": p95}


def test_the_servers_own_numbers_arrive(jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard", settings={"dashboard": {"minutes": 2}})
    statistics = server.engine.statistics
    statistics.running, statistics.device_bytes, statistics.pressure = 2, 5_000, "evicting"
    statistics.prompt_tokens = 100
    statistics.cached_tokens.update(memory=32, disk=16)
    statistics.cache_bytes = {"memory": 7, "disk": 9}
    server.wait_until(lambda: server.get("/dashboard/state").json["history"][-1]["running"] == 2)
    told = server.get("/dashboard/state").json
    last = told["history"][-1]
    assert last["cached_tokens"] == {"memory": 32, "disk": 16}
    assert last["cache_bytes"] == {"memory": 7, "disk": 9}
    assert (last["device_bytes"], last["pressure"], last["prompt_tokens"]) == (5_000, "evicting", 100)
    (model,) = told["models"]
    assert (model["id"], model["state"], model["context_length"], model["running"]) == ("scripted", "ready", 4096, 2)
    assert ("dashboard", "active") in [(plugin["name"], plugin["state"]) for plugin in told["plugins"]]
    assert told["keeps"]["minutes"] == 2
