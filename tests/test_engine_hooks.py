"""Plugins on the engine's thread: what they change there, and what it costs when they fail or hang."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from jackfield.engine.request import EngineEvent, FinishEvent, GenerationRequest, SamplingParameters, TokenEvent
from jackfield.engine.thread import Engine
from jackfield.errors import EngineError
from jackfield.events import Event, EventBus
from jackfield.hooks import RequestInfo, hookimpl
from jackfield.hooks.calls import Hooks
from jackfield.hooks.discovery import given
from jackfield.models.registry import ServedModel
from jackfield.models.service import open_model
from jackfield.settings import Settings

INFO = RequestInfo("r", "/chat/completions", "tiny")
SECONDS = 60
QUICK = {"hook_seconds": 0.5, "slow_hook_seconds": 0.5}
"""Limits for plugins that hang."""


@asynccontextmanager
async def opened(
    folder: Path, plugin: object, **settings: Any
) -> AsyncIterator[tuple[ServedModel, Hooks, list[Event]]]:
    own = {
        "prefix_cache_disk_bytes": 0,
        "max_plugin_failures": 2,
        "hook_seconds": SECONDS,
        "slow_hook_seconds": SECONDS,
    }
    chosen = Settings(model=str(folder), **(own | settings))
    hooks, events, heard = given([("plugin", plugin)], chosen), EventBus(), list[Event]()
    events.listen(heard.append)
    model = await open_model(chosen, folder, events, lambda line: None, hooks.engine)
    try:
        yield model, hooks, heard
    finally:
        await model.engine.stop()


async def generate(engine: Engine, hooks: Hooks | None, **fields: Any) -> list[EngineEvent]:
    """All that a request gets."""
    request = GenerationRequest("one", (1, 2, 3), 6, SamplingParameters(temperature=0))
    if hooks is not None:
        request = replace(request, prepare=lambda one: hooks.engine.prepare(INFO, one))
    request = replace(request, **fields)
    done: asyncio.Future[list[EngineEvent]] = asyncio.get_running_loop().create_future()
    found: list[EngineEvent] = []

    def deliver(events: list[EngineEvent]) -> None:
        found.extend(events)
        if isinstance(events[-1], FinishEvent):
            done.set_result(found)

    engine.admit([request.id])
    engine.submit(request, deliver)
    return await asyncio.wait_for(done, SECONDS)


def tokens(events: list[EngineEvent]) -> list[int]:
    return [event.id for event in events if isinstance(event, TokenEvent)]


def only(token: int) -> Callable[..., mx.array]:
    def process(tokens: tuple[int, ...], logits: mx.array) -> mx.array:
        assert tokens[:3] == (1, 2, 3)
        return mx.where(mx.arange(logits.size) == token, logits, -mx.inf)

    return process


class Processes:
    def __init__(self, *processors: Any) -> None:
        self.processors = processors
        self.asked: list[str] = []

    @hookimpl
    def logits_processors(self, request: RequestInfo) -> list[Any]:
        self.asked.append(threading.current_thread().name)
        return list(self.processors)


def test_processors_run_on_the_engines_thread(tiny_model: Path) -> None:
    async def check() -> None:
        plugin = Processes(only(7))
        async with opened(tiny_model, plugin) as (model, hooks, _):
            assert tokens(await generate(model.engine, hooks)) == [7] * 6
            assert 7 not in tokens(await generate(model.engine, None))
        assert plugin.asked == ["jackfield-engine"]

    asyncio.run(check())


def raises(tokens: tuple[int, ...], logits: mx.array) -> mx.array:
    raise ValueError("no")


@pytest.mark.parametrize(
    "processor",
    [raises, lambda tokens, logits: logits[:5], lambda tokens, logits: None],
    ids=["raises", "shape", "none"],
)
def test_a_processor_that_fails_is_left_out_and_in_the_end_its_plugin(tiny_model: Path, processor: Any) -> None:
    async def check() -> None:
        async with opened(tiny_model, Processes(processor)) as (model, hooks, _):
            expected = tokens(await generate(model.engine, None))
            plugin = hooks.named("plugin")
            for _ in range(2):
                assert plugin.state == "active"
                assert tokens(await generate(model.engine, hooks)) == expected
            assert plugin.state == "disabled"
            assert plugin.counts["logits_processors"].failures == 0

    asyncio.run(check())


class Samples:
    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    @hookimpl
    def make_sampler(self, sampling: SamplingParameters) -> Any:
        assert sampling.temperature == 0
        return self.sampler


def test_a_sampler_chooses_its_own_requests_tokens_and_no_others(tiny_model: Path) -> None:
    async def check() -> None:
        async with opened(tiny_model, Samples(mx.argmin)) as (model, hooks, _):
            together = await asyncio.gather(generate(model.engine, hooks), generate(model.engine, None, id="two"))
            alone = [tokens(await generate(model.engine, one)) for one in (hooks, None)]
            assert [tokens(one) for one in together] == alone
            assert alone[0] != alone[1]

    asyncio.run(check())


@pytest.mark.parametrize(
    "sampler",
    [lambda logits: 1 / 0, lambda logits: mx.array(10**6), lambda logits: None],
    ids=["raises", "token", "none"],
)
def test_without_a_samplers_token_the_engine_takes_its_own(tiny_model: Path, sampler: Any) -> None:
    async def check() -> None:
        async with opened(tiny_model, Samples(sampler)) as (model, hooks, _):
            assert tokens(await generate(model.engine, hooks)) == tokens(await generate(model.engine, None))

    asyncio.run(check())


async def until_ready(engine: Engine) -> None:
    async with asyncio.timeout(SECONDS):
        while not engine.ready:  # noqa: ASYNC110 - it has no event for this
            await asyncio.sleep(0.02)


class Hangs:
    """At a hook, or in what it brings, until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def hang(self, *_: Any) -> Any:
        self.released.wait(SECONDS)

    @hookimpl
    def logits_processors(self, request: RequestInfo) -> list[Any]:
        if request.id == "hook":
            self.hang()
        return [self.hang]


@pytest.mark.parametrize("where", ["hook", "processor"])
def test_a_plugin_that_hangs_is_disabled_and_the_engine_started_again(tiny_model: Path, where: str) -> None:
    async def check() -> None:
        plugin = Hangs()
        async with opened(tiny_model, plugin, **QUICK) as (model, hooks, heard):
            info = replace(INFO, id=where)
            events = await generate(model.engine, None, prepare=lambda one: hooks.engine.prepare(info, one))
            end = events[-1]
            assert isinstance(end, FinishEvent)
            assert isinstance(end.error, EngineError)
            assert hooks.named("plugin").state == "disabled"
            await until_ready(model.engine)
            assert tokens(await generate(model.engine, hooks)) == tokens(await generate(model.engine, None))
            assert [event.kind for event in heard][:2] == ["engine_failed", "engine_restarted"]
            assert "plugin plugin took longer" in heard[0].title
            plugin.released.set()

    asyncio.run(check())


class Prepares:
    def __init__(self, prepare: Callable[[Any], Any]) -> None:
        self.prepare = prepare
        self.calls = 0

    @hookimpl
    def prepare_model(self, model: Any, config: Any, device: Any) -> Any:
        self.calls += 1
        assert config["model_type"]
        assert device.kind in ("cpu", "cuda", "metal")
        return self.prepare(model)


def break_it(model: Any) -> None:
    """Leaves the model in pieces."""
    model.layers.clear()
    raise ValueError("no")


def zero(model: Any) -> Any:
    model.model.norm.weight = mx.zeros_like(model.model.norm.weight)
    return model


async def first_tokens(folder: Path, plugin: object, **settings: Any) -> tuple[list[int], str]:
    async with opened(folder, plugin, **settings) as (model, hooks, _):
        return tokens(await generate(model.engine, None)), hooks.named("plugin").state


def test_a_plugin_may_prepare_the_model(tiny_model: Path) -> None:
    assert asyncio.run(first_tokens(tiny_model, Prepares(zero))) == ([0] * 6, "active")


def test_the_model_is_loaded_again_without_a_plugin_that_broke_it(tiny_model: Path) -> None:
    whole, _ = asyncio.run(first_tokens(tiny_model, Prepares(lambda model: None)))
    plugin = Prepares(break_it)
    assert asyncio.run(first_tokens(tiny_model, plugin)) == (whole, "disabled")
    assert plugin.calls == 1


def test_and_without_one_that_hangs(tiny_model: Path) -> None:
    released = threading.Event()
    plugin = Prepares(lambda model: released.wait(SECONDS) and None)
    try:
        found, state = asyncio.run(first_tokens(tiny_model, plugin, **QUICK))
    finally:
        released.set()
    assert (len(found), state, plugin.calls) == (6, "disabled", 1)


def test_entropy_is_that_of_the_models_own_distribution(tiny_model: Path) -> None:
    async def check() -> None:
        seen: list[np.ndarray] = []

        def keep(tokens: tuple[int, ...], logits: mx.array) -> mx.array:
            seen.append(np.array(logits, dtype=np.float64))
            return logits

        async with opened(tiny_model, Processes(keep)) as (model, hooks, _):
            events, other = await asyncio.gather(
                generate(model.engine, hooks, top_logprobs=2, entropy=True),
                generate(model.engine, None, id="two", top_logprobs=0),
            )
        own = [event for event in events if isinstance(event, TokenEvent)]
        for event, logits in zip(own, seen, strict=False):
            shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            assert event.entropy == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-3)
            assert len(event.top) == 2
        assert all(event.entropy is None for event in other if isinstance(event, TokenEvent))
        assert [event.time for event in own] == sorted(event.time for event in own)
        assert own[0].time > 0

    asyncio.run(check())
