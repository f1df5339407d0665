"""Who is in memory when not all models fit: on the real shelf and registry, with models that only weigh something."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from jackfield.errors import ConfigurationError, InUseError, ModelLoadError, ModelNotFoundError, UnavailableError
from jackfield.events import Event, EventBus
from jackfield.models import shelf as shelf_module
from jackfield.models.architecture import LayerState
from jackfield.models.plan import MemoryPlan, plan_memory
from jackfield.models.registry import Entry, Registry, ServedModel
from jackfield.models.shelf import OnDemand, needs

pytestmark = pytest.mark.anyio

LAYER = LayerState(values=1, itemsize=1)
CONTEXT = 256


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "LOOK_SECONDS", 0.02)


def plan_of(weight: int, total: int) -> MemoryPlan:
    return plan_memory(
        total=total, weights=weight, workspace=0, layers=[LAYER], context_length=CONTEXT, slots=1
    ).fitting()


@dataclass
class Weight:
    """An engine that has been loaded."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    state: str = "ready"
    stopped: bool = False

    async def resize(self, pool: int, prefix_cache: int) -> None:
        self.sizes.append((pool, prefix_cache))

    async def stop(self) -> None:
        self.stopped = True


@dataclass
class Model:
    """As much of a ServedModel as counts here."""

    id: str
    plan: MemoryPlan
    engine: Weight = field(default_factory=Weight)
    profile: None = None
    adapted: dict[str, "Model"] = field(default_factory=dict)


class House:
    """A registry of models whose weights are so heavy."""

    def __init__(self, total: int, *entries: Entry, aliases: dict[str, str] | None = None, **weights: int) -> None:
        self.total = total
        self.weights = weights
        self.entries = {name: Entry(name) for name in weights} | {entry.id: entry for entry in entries}
        self.told: list[Event] = []
        self.opened: list[str] = []
        self.shares: list[int | None] = []
        self.broken: dict[str, Exception] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        events = EventBus()
        events.listen(self.told.append)
        self.shelf = OnDemand(
            self.entries.values(),
            fetch=lambda entry: Path(entry.id),
            plan=lambda entry, folder, total: plan_of(self.weights[entry.id], total),
            open=cast("Callable[[Entry, Path, int | None], Awaitable[ServedModel]]", self._open),
            total=lambda: self.total,
            events=events,
        )
        self.registry = Registry(self.entries.values(), aliases, self.shelf)

    async def _open(self, entry: Entry, folder: Path, share: int | None) -> Model:
        self.opened.append(entry.id)
        self.shares.append(share)
        await self.gate.wait()
        if entry.id in self.broken:
            raise self.broken[entry.id]
        return Model(entry.id, plan_of(self.weights[entry.id], share or self.total))

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Model]:
        loan = await self.registry.lend(name)
        try:
            yield cast("Model", loan.model)
        finally:
            loan.end()

    async def use(self, name: str) -> None:
        async with self.using(name):
            pass

    @property
    def states(self) -> dict[str, str]:
        return {entry.id: entry.state for entry in self.registry.entries}

    @property
    def loaded(self) -> set[str]:
        return {name for name, state in self.states.items() if state == "ready"}


async def test_models_come_when_they_are_asked_for() -> None:
    house = House(10_000, a=1000, b=1000)
    assert house.states == {"a": "unloaded", "b": "unloaded"}
    await house.use("b")
    assert house.states == {"a": "unloaded", "b": "ready"}
    await house.use("b")
    assert house.opened == ["b"]


async def test_who_was_used_longest_ago_makes_room() -> None:
    house = House(3000, a=1000, b=1000, c=1000)
    for name in "aba":
        await house.use(name)
    await house.use("c")
    assert house.loaded == {"a", "c"}


async def test_no_more_leave_than_have_to() -> None:
    house = House(4000, a=500, b=1000, c=500, d=1500)
    for name in "abc":
        await house.use(name)
    await house.use("d")
    assert house.loaded == {"b", "c", "d"}


async def test_who_is_in_use_stays_and_the_other_one_waits() -> None:
    house = House(2000, a=1000, b=1000)
    async with house.using("a") as model:
        waiting = asyncio.create_task(house.use("b"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert house.states == {"a": "ready", "b": "loading"}
        assert not model.engine.stopped
    await waiting
    assert model.engine.stopped
    assert house.loaded == {"b"}


async def test_one_that_fits_passes_one_that_waits_for_room() -> None:
    house = House(4000, a=2000, b=3000, c=400)
    async with house.using("a"):
        waiting = asyncio.create_task(house.use("b"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await house.use("c")
        assert house.states == {"a": "ready", "b": "loading", "c": "ready"}
    await waiting
    assert "b" in house.loaded


async def test_others_leave_without_waiting_for_one_that_waits_for_room() -> None:
    house = House(4000, a=2000, b=3000, c=400)
    await house.use("c")
    async with house.using("a"):
        waiting = asyncio.create_task(house.use("b"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await house.registry.unload("c")
        assert house.loaded == {"a"}
    await waiting


@pytest.mark.usefixtures("hurried")
async def test_nobody_takes_the_room_that_another_one_waits_for() -> None:
    """All of c would fit beside a, but not beside b, which came first."""
    house = House(4000, a=2000, b=3000, c=900)
    order: list[str] = []

    async def use(name: str) -> None:
        async with house.using(name):
            order.append(name)

    async with busy(house, "a"):
        tasks = [asyncio.create_task(use("b"))]
        await asyncio.sleep(0.005)
        tasks += [asyncio.create_task(use("c")) for _ in range(3)]
        await asyncio.gather(*tasks)
    assert order[0] == "b"
    assert house.opened[:2] == ["a", "b"]


async def test_waiting_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "WAIT_SECONDS", 0.05)
    house = House(2000, a=1000, b=1000)
    async with house.using("a"):
        with pytest.raises(UnavailableError, match="no room for b while a are at work") as caught:
            await house.use("b")
        assert caught.value.retry_after
        assert house.states == {"a": "ready", "b": "unloaded"}
    await house.use("b")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"PATIENCE": 0.02, "RESIDENCE": 0.0, "WAIT": 20.0, "LOOK": 0.01}.items():
        monkeypatch.setattr(shelf_module, f"{name}_SECONDS", seconds)


@asynccontextmanager
async def busy(house: House, name: str, clients: int = 3) -> AsyncIterator[None]:
    """So many clients ask for a model one time after the other."""

    async def ask(number: int) -> None:
        await asyncio.sleep(0.003 * number)
        while True:
            async with house.using(name):
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(ask(number)) for number in range(clients)]
    await until(lambda: house.entries[name].loans > 1)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.usefixtures("hurried")
async def test_models_in_constant_use_take_turns() -> None:
    house = House(2000, a=1000, b=1000)
    async with busy(house, "a"):
        async with house.using("b"):
            assert house.loaded == {"b"}
        await until(lambda: house.loaded == {"a"})
    assert house.opened == ["a", "b", "a"]


@pytest.mark.usefixtures("hurried")
async def test_what_runs_is_not_ended_and_what_comes_waits_behind() -> None:
    house = House(2000, a=1000, b=1000)
    order: list[str] = []

    async def use(name: str) -> None:
        async with house.using(name):
            order.append(name)

    async with house.using("a") as model:
        tasks = [asyncio.create_task(use("b"))]
        await until(lambda: house.entries["a"].leaving is not None)
        tasks.append(asyncio.create_task(use("a")))
        await asyncio.sleep(0.05)
        assert not order
        assert not model.engine.stopped
        # A plugin that asks for the sake of a request which is being answered does not wait for itself.
        (await house.registry.lend("a", waits=False)).end()
    await asyncio.gather(*tasks)
    assert order == ["b", "a"]


async def test_nobody_leaves_who_has_just_come(monkeypatch: pytest.MonkeyPatch, hurried: None) -> None:
    monkeypatch.setattr(shelf_module, "RESIDENCE_SECONDS", 1000.0)
    monkeypatch.setattr(shelf_module, "WAIT_SECONDS", 0.3)
    house = House(2000, a=1000, b=1000)
    async with busy(house, "a"):
        with pytest.raises(UnavailableError):
            await house.use("b")
        assert house.entries["a"].leaving is None
        house.entries["a"].since -= 1000
        await house.use("b")
    assert house.opened[:2] == ["a", "b"]


async def test_who_does_not_come_to_an_end_takes_requests_again(monkeypatch: pytest.MonkeyPatch, hurried: None) -> None:
    monkeypatch.setattr(shelf_module, "WAIT_SECONDS", 0.3)
    house = House(2000, a=1000, b=1000)
    async with house.using("a"):
        waiting = asyncio.create_task(house.use("b"))
        await until(lambda: house.entries["a"].leaving is not None)
        behind = asyncio.create_task(house.use("a"))
        with pytest.raises(UnavailableError, match="no room for b while a are at work"):
            await waiting
        await behind
        assert house.entries["a"].since > 0
    assert house.opened == ["a"]


@pytest.mark.usefixtures("hurried")
async def test_only_as_many_are_asked_to_leave_as_have_to() -> None:
    house = House(3400, Entry("a", pinned=True), a=1000, b=1000, c=500, d=800)
    for name in "abc":
        await house.use(name)
    async with house.using("a"), house.using("b"), house.using("c"):
        waiting = asyncio.create_task(house.use("d"))
        await until(lambda: house.entries["b"].leaving is not None)
        assert house.entries["a"].leaving is None
        assert house.entries["c"].leaving is None
    await waiting
    assert house.loaded == {"a", "c", "d"}


async def test_who_may_not_be_unloaded_is_told_why_and_what_to_do() -> None:
    house = House(10_000, Entry("a", pinned=True), a=1000, b=1000)
    for name in "ab":
        async with house.using(name):
            with pytest.raises(InUseError) as told:
                await house.registry.unload(name)
        reason = {"a": "a stays in memory: it is pinned.", "b": "b stays in memory: a request uses it."}[name]
        assert told.value.message == reason
        assert ("pinned" in told.value.suggestions[0]) == (name == "a")


async def test_pinned_models_stay() -> None:
    house = House(2000, Entry("a", pinned=True), a=1000, b=1000)
    house.entries["a"].pinned = True
    await house.use("a")
    with pytest.raises(ModelLoadError, match="does not fit beside a, which stay in memory"):
        await house.use("b")
    assert house.loaded == {"a"}


async def test_beside_pinned_models_a_model_has_as_much_context_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(10_000, Entry("small", pinned=True), small=1000, big=1000)
    await house.use("small")
    monkeypatch.setattr(f"{__name__}.CONTEXT", 100_000)
    async with house.using("big") as big:
        assert big.plan.context_length == 7680
    assert house.loaded == {"small", "big"}


async def test_what_never_fits_beside_pinned_models_is_told_at_once_and_pushes_nobody_out() -> None:
    house = House(5000, Entry("small", pinned=True), small=1000, idle=1000, large=3800)
    await house.use("small")
    await house.use("idle")
    with pytest.raises(ModelLoadError, match="large does not fit beside small, which stay in memory"):
        await house.use("large")
    house.entries["large"].last_used -= 60
    async with house.using("idle"), asyncio.timeout(5):
        with pytest.raises(ModelLoadError, match="large does not fit beside small, which stay in memory"):
            await house.use("large")
    assert house.loaded == {"small", "idle"}


async def test_what_still_fitted_when_it_was_planned_is_planned_anew_when_less_is_free() -> None:
    house = House(4000, Entry("small", pinned=True), small=1000, idle=1000, large=1300)
    await house.use("small")
    async with house.using("idle"):
        waiting = asyncio.create_task(house.use("large"))
        await until(lambda: house.states["large"] == "loading")
        await asyncio.sleep(0.03)
        house.total = 2600
        await until(lambda: house.states["large"] == "failed")
    with pytest.raises(ModelLoadError, match="large does not fit beside small"):
        await waiting


async def test_what_never_fits_pushes_nobody_out() -> None:
    house = House(2000, a=1000, b=5000)
    await house.use("a")
    with pytest.raises(ModelLoadError, match="Does not fit"):
        await house.use("b")
    assert house.loaded == {"a"}


async def test_memory_is_shared_out_anew_when_somebody_comes_or_goes() -> None:
    house = House(10_000, a=1000, b=3000)
    await house.use("a")
    assert house.shares == [None]
    async with house.using("a") as a:
        await house.use("b")
        alone = needs(plan_of(1000, 10_000)), needs(plan_of(3000, 10_000))
        spare = (10_000 - sum(alone)) // 2
        assert house.shares[1] == alone[1] + spare
        pool, cache = a.engine.sizes[-1]
        assert pool == alone[0] + spare - 1000
        assert cache == pool // 6
        house.entries["b"].unload_after = 0.01
        house.shelf.watch()
        await until(lambda: house.loaded == {"a"})
        await until(lambda: a.engine.sizes[-1][0] == 9000)
    await house.shelf.stop()


async def test_one_is_loaded_at_a_time_and_those_in_memory_go_on() -> None:
    house = House(10_000, a=1000, b=1000, c=1000)
    await house.use("a")
    house.gate.clear()
    waiting = [asyncio.create_task(house.use(name)) for name in "bcb"]
    await until(lambda: len(house.opened) == 2)
    await house.use("a")
    await asyncio.sleep(0.02)
    assert house.opened == ["a", "b"]
    house.gate.set()
    await asyncio.gather(*waiting)
    assert house.opened == ["a", "b", "c"]


async def test_who_gives_up_does_not_stop_the_loading() -> None:
    house = House(10_000, a=1000)
    house.gate.clear()
    waiting = asyncio.create_task(house.use("a"))
    await until(lambda: house.opened == ["a"])
    waiting.cancel()
    house.gate.set()
    await until(lambda: house.loaded == {"a"})
    assert house.entries["a"].loans == 0


@pytest.mark.parametrize("error", [ModelLoadError("It is broken."), RuntimeError("It is broken.")], ids=repr)
async def test_what_cannot_be_loaded_is_not_tried_at_every_request(error: Exception) -> None:
    house = House(10_000, a=1000, b=1000)
    house.broken["a"] = error
    for _ in range(3):
        with pytest.raises(ModelLoadError, match=r"It is broken\."):
            await house.use("a")
    assert house.opened == ["a"]
    assert house.states["a"] == "failed"
    await house.use("b")
    house.broken.clear()
    house.entries["a"].last_used -= 60
    await house.use("a")
    assert house.loaded == {"a", "b"}


async def test_a_failure_gives_the_others_their_room_back() -> None:
    house = House(10_000, a=1000, b=1000)
    house.broken["b"] = ModelLoadError("It is broken.")
    async with house.using("a") as a:
        with pytest.raises(ModelLoadError, match="It is broken"):
            await house.use("b")
        assert [pool for pool, _ in a.engine.sizes][1] == 9000


async def test_models_that_nobody_asks_for_leave() -> None:
    house = House(10_000, a=1000, b=1000)
    await house.use("a")
    await house.use("b")
    house.shelf.watch()
    house.entries["a"].unload_after = 0.01
    await until(lambda: bool(house.told))
    assert [event.kind for event in house.told] == ["model_unloaded"]
    assert house.states == {"a": "unloaded", "b": "ready"}
    async with house.using("a"):
        await asyncio.sleep(2 * shelf_module.LOOK_SECONDS)
        assert house.loaded == {"a", "b"}
    await house.shelf.stop()


async def test_the_end_comes_while_a_model_is_loaded() -> None:
    house = House(10_000, a=1000, b=1000)
    async with house.using("a") as a:
        house.gate.clear()
        waiting = asyncio.create_task(house.use("b"))
        await until(lambda: house.opened == ["a", "b"])
        await house.shelf.stop()
        assert a.engine.stopped
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_other_names() -> None:
    house = House(10_000, Entry("a", aliases=("gpt-4o",)), aliases={"gpt-4o-mini": "b", "o3": "gpt-4o"}, a=1, b=1)
    named = {name: house.registry.entry(name).id for name in ("a", "gpt-4o", "o3", "gpt-4o-mini")}
    assert named == {"a": "a", "gpt-4o": "a", "o3": "a", "gpt-4o-mini": "b"}
    assert house.registry.aliases("a") == ["gpt-4o", "o3"]
    with pytest.raises(ModelNotFoundError, match="gpt-5") as caught:
        house.registry.entry("gpt-5")
    assert caught.value.suggestions[0] == "Use one of: a, b."


def test_a_name_for_two_models() -> None:
    with pytest.raises(ConfigurationError, match="'b' would mean two models, b and a"):
        Registry([Entry("a", aliases=("b",)), Entry("b")])
    with pytest.raises(ConfigurationError, match="'sql' would mean two models, a and b"):
        Registry([Entry("a", adapters=("sql",)), Entry("b", adapters=("sql",))])
    with pytest.raises(ConfigurationError, match="'sql' would mean two models, sql and a"):
        Registry([Entry("a", adapters=("sql",), aliases=("sql",))])


@pytest.mark.parametrize(
    ("entries", "message", "advice"),
    [
        (
            [Entry("a"), Entry("a")],
            "Two models would be called 'a'",
            "Give one of them a table of another name, [models.NAME], with it as source.",
        ),
        (
            [Entry("a", adapters=("a",))],
            "'a' would mean a model and an adapter of a",
            "Give the adapter another name.",
        ),
        (
            [Entry("a", adapters=("b",)), Entry("b")],
            "'b' would mean a model and an adapter of a",
            "Give the adapter another name.",
        ),
    ],
)
def test_what_to_rename(entries: list[Entry], message: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Registry(entries)
    assert caught.value.suggestions == (advice,)


def test_an_alias_for_nobody() -> None:
    with pytest.raises(ConfigurationError, match="'gpt-4o' stands for 'c', which is not served"):
        Registry([Entry("a")], {"gpt-4o": "c"})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - of what has no event
            await asyncio.sleep(0.005)
