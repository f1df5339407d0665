"""When the engine fails, its requests end with a clear error, and the server goes on."""

import asyncio
import json
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx2
import mlx.core as mx
import pytest
import uvicorn
from mlx import nn
from mlx_lm.models import llama

from clock import Clock, clock_of
from jackfield.app import create_app
from jackfield.engine import thread as engine_thread
from jackfield.engine import worker as engine_worker
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import EngineEvent, FinishEvent, GenerationRequest, SamplingParameters, TokenEvent
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Events, Scheduler
from jackfield.engine.thread import Engine
from jackfield.engine.worker import probe
from jackfield.errors import EngineError, MemoryPressureError, ModelLoadError, QueueFullError
from jackfield.events import Event, EventBus
from jackfield.models.device import Blas, Device
from jackfield.models.embedding import EmbeddingSpec
from jackfield.models.loading import load_network
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.settings import Settings

CAPACITY = 4
LOOK_SECONDS = 0.02
LONG = 3600.0
"""A step or a load that takes so many seconds hangs."""
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "ignore_eos": True}


@dataclass
class Fault:
    """Makes the engine fail in one of its next steps."""

    steps: list[BaseException | threading.Event | Callable[[], object] | None] = field(default_factory=list)
    """What happens in the next steps: an error, a wait, something else, or nothing."""
    cancelling: list[Exception] = field(default_factory=list)
    """What goes wrong when requests are cancelled."""
    broken_rows: list[int] = field(default_factory=list)
    """Rows of the next decode steps whose logits are not numbers, one row a step."""
    free: int = 1 << 40
    """Bytes that the machine seems to have left."""
    loads: list[BaseException | threading.Event | None] = field(default_factory=list)
    """What happens when the model is loaded the next times."""
    schedulers: list[weakref.ref[Scheduler]] = field(default_factory=list)
    """All that were made."""
    fresh: list[bool] = field(default_factory=list)
    """How they were asked for."""
    left: list[int] = field(default_factory=list)
    """How many of those before were still there then."""
    cleared: int = 0
    engine: Engine | None = None
    heard: list[Event] = field(default_factory=list)
    """Events that went out."""

    def happen(self) -> None:
        _happen(self.steps)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.heard]


def _happen(what: list) -> None:
    match what.pop(0) if what else None:
        case BaseException() as error:
            raise error
        case threading.Event() as event:
            assert event.wait(60)
        case None:
            pass
        case function:
            function()


class FailingScheduler(Scheduler):
    """A real scheduler with a fault."""

    fault: Fault

    def step(self) -> Events:
        self.fault.happen()
        return super().step()

    def cancel(self, request_ids: frozenset[str]) -> None:
        if self.fault.cancelling:
            raise self.fault.cancelling.pop()
        super().cancel(request_ids)

    def clear(self) -> None:
        self.fault.cleared += 1
        super().clear()


class FailingRunner(Runner):
    """A real runner whose model goes wrong."""

    fault: Fault | None = None

    def decode(self, *arguments, **options) -> mx.array:
        logits = super().decode(*arguments, **options)
        if self.fault and self.fault.broken_rows:
            logits[self.fault.broken_rows.pop(0)] = mx.nan
        return logits


@contextmanager
def serving(folder: Path, fault: Fault) -> Iterator[str]:
    """The real application in this process."""

    def load(fresh: bool) -> Scheduler:
        _happen(fault.loads)
        network = load_network(folder, Device("cpu", "test", 1 << 30, Blas("test")))
        runner = FailingRunner(network.model)
        guard = MemoryGuard(1 << 40, 100, lambda: fault.free)
        scheduler = FailingScheduler(runner, PrefixCache(1 << 20), 4, guard)
        scheduler.fault = runner.fault = fault
        return scheduler

    bus = EventBus()
    bus.listen(fault.heard.append)
    engine = fault.engine = Engine(load, CAPACITY, events=bus, name="tiny")
    model = ServedModel("tiny", Tokenizer(folder), engine, 512, 49152, {}, embedding=EmbeddingSpec(64))
    app = create_app(Settings(), Registry([model]))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))

    async def run() -> None:
        await engine.start()
        await server.serve()
        await engine.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", autouse=True)
def attentive() -> Iterator[None]:
    """Whoever looks after something looks many times a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_thread, "LOOK_SECONDS", LOOK_SECONDS)
        patch.setattr(engine_worker, "LOOK_SECONDS", LOOK_SECONDS)
        patch.setattr(engine_worker, "REST_SECONDS", LOOK_SECONDS)
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What tells whether something hangs."""
    return clock_of(monkeypatch, engine_thread, engine_worker)


@pytest.fixture(scope="module")
def module_fault() -> Fault:
    return Fault()


@pytest.fixture
def fault(module_fault: Fault) -> Fault:
    module_fault.heard.clear()
    return module_fault


@pytest.fixture(scope="module")
def address(tiny_model: Path, module_fault: Fault) -> Iterator[str]:
    with serving(tiny_model, module_fault) as url:
        yield url


@pytest.fixture
def url(address: str, fault: Fault) -> str:
    # The test before may have left the engine on its way back.
    until_ready(address)
    fault.heard.clear()
    return address


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_ready(url: str) -> None:
    until(lambda: httpx2.get(f"{url}/ready").status_code == 200)


def chat(url: str, **fields) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/chat/completions", json={**QUESTION, **fields}, timeout=60)


def embed(url: str, texts: list[str]) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": texts}, timeout=60)


def events(response: httpx2.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), SystemExit(3), ValueError()], ids=repr)
def test_a_failing_step_is_a_retryable_error_and_the_next_request_is_answered(url, fault, error):
    fault.steps = [error]
    response = chat(url)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "engine_error"
    assert response.json()["error"]["suggestions"]
    until_ready(url)
    assert chat(url).status_code == 200
    assert fault.kinds() == ["engine_failed", "engine_restarted"]


@pytest.mark.parametrize("steps", [0, 1], ids=["at once", "in the middle"])
def test_embeddings_fail_in_the_same_way(url, fault, steps):
    texts = ["word " * 400] * 20  # more than one batch
    fault.steps = [None] * steps + [RuntimeError("a kernel failed")]
    response = embed(url, texts)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "engine_error"
    until_ready(url)
    assert len(embed(url, texts).json()["data"]) == 20
    assert fault.kinds() == ["engine_failed", "engine_restarted"]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[malloc] Unable to allocate 8589934592 bytes.")], ids=repr
)
def test_running_out_of_memory_is_told_as_such_and_never_as_too_long_a_prompt(url, fault, error):
    fault.steps = [error]
    response = chat(url)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "memory_pressure"
    assert "context" not in response.json()["error"]["message"]
    until_ready(url)
    assert chat(url).status_code == 200


def test_a_stream_that_fails_before_its_first_token_ends_with_the_error(url, fault):
    fault.steps = [RuntimeError("a kernel failed")]
    *_, last = events(chat(url, stream=True))
    assert last["error"]["code"] == "engine_error"


def test_a_stream_that_fails_in_the_middle_ends_as_cut_off(url, fault):
    fault.steps = [None, None, None, None, None, RuntimeError("a kernel failed")]
    chunks = events(chat(url, stream=True, n=2))
    assert not any("error" in chunk for chunk in chunks)
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert reasons == ["length", "length"]


def test_a_full_queue_is_429_with_its_length_and_when_to_try_again(url, fault):
    go_on = threading.Event()
    fault.steps = [go_on]
    with ThreadPoolExecutor() as clients:
        waiting = [clients.submit(chat, url, n=2), clients.submit(chat, url, n=2)]
        try:
            until(lambda: len(fault.engine._waiting) == CAPACITY)
            response = chat(url, n=2, stream=True)
        finally:
            go_on.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "queue_full"
    assert "4 requests" in response.json()["error"]["message"]
    assert len(chat(url, n=2 * CAPACITY).json()["choices"]) == 2 * CAPACITY, "let in when nobody waits"


def test_many_texts_take_one_place(url, fault):
    go_on = threading.Event()
    fault.steps = [go_on]
    with ThreadPoolExecutor() as clients:
        waiting = [clients.submit(embed, url, ["Hi"] * 100) for _ in range(CAPACITY)]
        try:
            until(lambda: len(fault.engine._waiting) == CAPACITY)
            response = embed(url, ["Hi"])
        finally:
            go_on.set()
        assert [len(answer.result().json()["data"]) for answer in waiting] == [100] * CAPACITY
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"


def test_places_are_kept_between_admission_and_submission(url, fault, monkeypatch):
    engine = fault.engine
    engine.admit(["a", "b", "c"])
    with pytest.raises(QueueFullError):
        engine.admit(["d", "e"])
    engine.cancel(["b"])
    engine.admit(["d", "e"])
    # Clients that hung up before their requests came leave nothing behind.
    monkeypatch.setattr("jackfield.engine.thread.RESERVED_SECONDS", 0)
    engine.admit(["f"] * CAPACITY)
    assert chat(url).status_code == 200
    engine.cancel(["f"])


def test_a_failure_while_cancelling_ends_the_others_too_and_no_more(url, fault):
    go_on = threading.Event()
    fault.steps = [go_on]
    with ThreadPoolExecutor() as clients:
        other = clients.submit(chat, url)
        until(lambda: len(fault.engine._waiting) == 1)
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json={**QUESTION, "stream": True}) as leaving:
            next(leaving.iter_lines())
            fault.cancelling = [MemoryError("no memory to keep its prefix")]
        until(lambda: not fault.engine._worker.inbox.empty())
        go_on.set()
        assert other.result().status_code == 503
    assert not fault.cancelling
    until_ready(url)
    assert chat(url).status_code == 200


def test_a_failure_forgets_the_prefixes_that_may_be_damaged(url, fault):
    long = {"messages": [{"role": "user", "content": "again and " * 60}], "max_tokens": 1}
    chat(url, **long)
    assert chat(url, **long).json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    fault.steps = [RuntimeError("a kernel failed")]
    assert chat(url, **long).status_code == 503
    until_ready(url)
    assert chat(url, **long).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_model_that_generates_nothing_any_more_is_loaded_again(url, fault):
    before = fault.engine._worker
    broken = RuntimeError("broken for good")
    # The step fails, and so does the token that was to show that all is well again; loading fails once, too.
    fault.steps, fault.loads = [broken, broken], [OSError("the disk hiccups")]
    assert chat(url).status_code == 503
    until(lambda: fault.engine._worker is not before)
    until_ready(url)
    assert chat(url).status_code == 200
    assert fault.kinds()[-1] == "engine_restarted"
    assert not fault.loads


@pytest.mark.usefixtures("at_once")
def test_a_step_that_hangs_is_given_up_and_another_thread_takes_over(tiny_model, clock):
    fault, go_on, load = Fault(), threading.Event(), threading.Event()
    with serving(tiny_model, fault) as url, ThreadPoolExecutor() as clients:
        hung = fault.engine._worker
        fault.steps, fault.loads = [go_on], [OSError("the disk hiccups"), OSError("again"), load]
        waiting = [clients.submit(chat, url), clients.submit(chat, url, stream=True)]
        until(lambda: len(fault.engine._waiting) == 2 and not fault.steps)
        clock.ahead += LONG
        until(lambda: fault.engine.state == "recovering")
        refused = httpx2.get(f"{url}/ready")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert chat(url).status_code == 503
        response = waiting[0].result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_error")
        assert events(waiting[1].result())[-1]["error"]["code"] == "engine_error"
        load.set()
        until_ready(url)
        assert chat(url).status_code == 200
        # The thread that was given up comes back, and nobody hears of it.
        go_on.set()
        until(lambda: not hung.alive)
        assert chat(url).status_code == 200
    assert fault.kinds() == ["engine_failed", "engine_restarted"]


def test_new_work_is_refused_while_the_machine_has_no_memory_left_and_taken_again_afterwards(url, fault):
    fault.free = 0
    try:
        until(lambda: fault.engine.statistics.pressure == "refusing")
        for response in (chat(url), chat(url, stream=True)):
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) >= 1
            error = response.json()["error"]
            assert error["code"] == "memory_pressure"
            assert "context" not in error["message"]
        assert httpx2.get(f"{url}/ready").status_code == 200, "it is a matter of moments"
    finally:
        fault.free = 1 << 40
    until(lambda: fault.engine.statistics.pressure == "none")
    assert chat(url).status_code == 200
    until(lambda: [(event.kind, event.level) for event in fault.heard] == [
        ("memory_pressure", "warning"), ("memory_pressure", "info")
    ])  # fmt: skip


def test_output_that_is_not_a_number_ends_that_request_alone(url, fault):
    with ThreadPoolExecutor() as clients:
        go_on = threading.Event()
        fault.steps, fault.broken_rows = [go_on], []
        answers = [clients.submit(chat, url, seed=i, max_tokens=30) for i in range(2)]
        until(lambda: len(fault.engine._waiting) == 2)
        fault.broken_rows = [0]
        go_on.set()
        responses = sorted((answer.result() for answer in answers), key=lambda r: r.status_code)
    assert [response.status_code for response in responses] == [200, 503]
    assert "not a number" in responses[1].json()["error"]["message"]
    assert httpx2.get(f"{url}/ready").status_code == 200
    assert fault.kinds() == []


def test_a_bug_in_an_endpoint_is_an_envelope_too(url, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("jackfield.api.models._model", broken)
    response = httpx2.get(f"{url}/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    (told,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert told.getMessage() == f"Unexpected error at GET /v1/models, request {response.headers['x-request-id']}"
    assert "secret detail" in str(told.exc_info)


def test_a_body_that_is_too_large_is_413(url, monkeypatch):
    response = httpx2.post(f"{url}/v1/chat/completions", content=b" " * (Settings().max_body_bytes + 1), timeout=60)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


async def started(engine: Engine) -> None:
    await engine.start()


def test_a_model_that_does_not_load_fails_the_start():
    def load(fresh: bool) -> Scheduler:
        raise ModelLoadError("no such model")

    engine = Engine(load)
    with pytest.raises(ModelLoadError, match="no such model"):
        asyncio.run(started(engine))
    assert not engine.ready


def test_a_stopped_engine_refuses_and_ready_says_so(tiny_model, fault):
    fault.steps = []
    with serving(tiny_model, fault) as address:
        assert httpx2.get(f"{address}/ready").status_code == 200

    async def check() -> None:
        network_free = Engine(lambda _: FailingScheduler.__new__(FailingScheduler))
        assert not network_free.ready
        with pytest.raises(EngineError):
            network_free.submit(GenerationRequest("a", (1,), 1, SamplingParameters()), lambda _: None)

    asyncio.run(check())


# Without a server


@cache
def network() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    model = llama.Model(llama.ModelArgs("llama", **sizes, rms_norm_eps=1e-5, vocab_size=64))
    mx.eval(model.parameters())
    return model


def employing(fault: Fault, check: Callable[[Engine], Awaitable[None]]) -> None:
    """Run ``check`` with an engine that works, whose steps and loads go wrong from then on."""

    def load(fresh: bool) -> Scheduler:
        fault.fresh.append(fresh)
        fault.left.append(sum(ref() is not None for ref in fault.schedulers))
        _happen(fault.loads)
        scheduler = FailingScheduler(
            Runner(network()), PrefixCache(1 << 20), 4, MemoryGuard(1 << 40, 100, lambda: fault.free)
        )
        scheduler.fault = fault
        fault.schedulers.append(weakref.ref(scheduler))
        return scheduler

    async def run() -> None:
        bus = EventBus()
        bus.listen(fault.heard.append)
        engine = Engine(load, events=bus)
        await engine.start()
        try:
            await check(engine)
        finally:
            await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


def ask(engine: Engine, name: str = "a") -> list[EngineEvent]:
    """Send a request; what it gets arrives in the list."""
    got: list[EngineEvent] = []
    engine.submit(GenerationRequest(name, (1, 2, 3), 4, SamplingParameters(temperature=0)), got.extend)
    return got


async def eventually(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for happens on other threads
        await asyncio.sleep(0.01)


async def answered(engine: Engine) -> None:
    await eventually(lambda: engine.ready)
    got = ask(engine, "good")
    await eventually(lambda: got and isinstance(got[-1], FinishEvent))
    assert got[-1].error is None
    assert sum(isinstance(event, TokenEvent) for event in got) == 4


async def fails(engine: Engine) -> FinishEvent:
    """Send a request that gets nothing but an error, and see the engine off."""
    got = ask(engine)
    await eventually(lambda: got)
    (event,) = got
    assert isinstance(event, FinishEvent)
    assert event.reason == "error"
    return event


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is started anew without a pause."""
    monkeypatch.setattr(engine_thread, "RETRY_SECONDS", (0.0,))


BROKEN = "broken for good"


def broken() -> RuntimeError:
    return RuntimeError(BROKEN)


@pytest.mark.usefixtures("caplog")
def test_what_a_failed_step_held_is_gone_before_the_engine_tries_again():
    fault, held, seen = Fault(), [], []

    def run_out_of_memory() -> None:
        activations = threading.Event()
        held.append(weakref.ref(activations))
        raise RuntimeError("[malloc] Unable to allocate")

    def step() -> None:
        caches = threading.Event()
        held.append(weakref.ref(caches))
        try:
            run_out_of_memory()
        except RuntimeError as error:
            raise MemoryError("the step failed") from error

    async def check(engine: Engine) -> None:
        fault.steps = [step, lambda: seen.extend(ref() is None for ref in held)]
        assert isinstance((await fails(engine)).error, MemoryPressureError)
        await answered(engine)

    employing(fault, check)
    assert seen == [True, True]


@pytest.mark.usefixtures("at_once", "caplog")
def test_a_failed_replacement_is_gone_before_the_next_one_which_alone_begins_afresh():
    fault = Fault()

    async def check(engine: Engine) -> None:
        for _ in range(2):
            # The step, the token that was to show that all is well, and the first token of two replacements.
            fault.steps = [broken(), broken(), broken(), broken()]
            await fails(engine)
            await answered(engine)
        assert engine.statistics.restarts == 2
        assert engine.statistics.generated_tokens == 8

    employing(fault, check)
    assert fault.fresh == [False, *[False, True, True] * 2]
    assert fault.left == [0] * 7


def test_short_memory_while_a_request_fails_costs_that_request_alone():
    fault = Fault()

    async def check(engine: Engine) -> None:
        def fail() -> None:
            fault.free = 0
            raise ValueError("one bad request")

        fault.steps = [fail]
        await fails(engine)
        await eventually(lambda: engine.ready and engine.refuses)
        with pytest.raises(MemoryPressureError):
            engine.admit(["a"])
        fault.free = 1 << 40
        await eventually(lambda: not engine.refuses)
        await answered(engine)

    employing(fault, check)
    assert len(fault.schedulers) == 1


def test_short_memory_at_the_start_is_a_matter_of_waiting():
    fault = Fault(free=0)

    async def check(engine: Engine) -> None:
        assert engine.ready
        assert engine.refuses
        fault.free = 1 << 40
        await eventually(lambda: not engine.refuses)
        await answered(engine)

    employing(fault, check)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("where", ["loading", "first token"])
def test_a_replacement_that_hangs_is_replaced(clock, where):
    fault, go_on = Fault(), threading.Event()

    async def check(engine: Engine) -> None:
        fault.steps = [broken(), broken()]
        if where == "loading":
            fault.loads = [go_on]
        else:
            fault.steps.append(go_on)
        await fails(engine)
        await eventually(lambda: len(fault.fresh) == 2 and not fault.loads and not fault.steps)
        hung = engine._worker
        clock.ahead += LONG
        await answered(engine)
        assert engine._worker is not hung
        assert hung.alive
        go_on.set()
        await eventually(lambda: not hung.alive)
        await answered(engine)

    employing(fault, check)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyboardInterrupt()], ids=repr)
def test_whatever_loading_raises_the_next_attempt_follows(error):
    fault = Fault()

    async def check(engine: Engine) -> None:
        fault.steps, fault.loads = [broken(), broken()], [error]
        await fails(engine)
        await answered(engine)

    employing(fault, check)
    assert len(fault.fresh) == 3


def test_the_watch_survives_an_error_of_its_own(monkeypatch, at_once):
    fault = Fault()

    async def check(engine: Engine) -> None:
        errors = [broken()]
        monkeypatch.setattr(engine, "_tell_pressure", lambda: _happen(errors))
        await eventually(lambda: not errors)
        fault.steps = [broken(), broken()]
        await fails(engine)
        await answered(engine)

    employing(fault, check)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("returns", [True, False], ids=["returns", "raises"])
def test_an_abandoned_thread_touches_nothing_when_it_comes_back(clock, returns):
    fault, go_on = Fault(), threading.Event()

    def hang() -> None:
        clock.ahead += LONG
        assert go_on.wait(60)
        if not returns:
            raise broken()

    async def check(engine: Engine) -> None:
        hung = engine._worker
        fault.steps = [hang]
        await fails(engine)
        await answered(engine)
        fault.steps = [None, broken()]
        go_on.set()
        await eventually(lambda: not hung.alive)
        assert len(fault.steps) == 2, "no step and no probe"
        fault.steps.clear()
        assert engine.statistics.prompt_tokens == 3
        await answered(engine)

    employing(fault, check)
    assert not fault.cleared


@pytest.mark.usefixtures("at_once")
def test_an_abandoned_thread_that_is_idle_ends():
    async def check(engine: Engine) -> None:
        left = engine._worker
        left.abandon()
        await eventually(lambda: not left.alive)
        await eventually(lambda: engine._worker is not left)
        await answered(engine)

    employing(Fault(), check)


def test_the_end_is_told_before_it_comes(monkeypatch):
    monkeypatch.setattr(engine_thread, "STOP_SECONDS", 30.0)
    fault, go_on = Fault(), threading.Event()

    async def check(engine: Engine) -> None:
        fault.steps = [go_on]
        got = ask(engine)
        await eventually(lambda: not fault.steps)
        stopping = asyncio.create_task(engine.stop())
        await eventually(lambda: got)
        assert got[0].error.retry_after == 10
        assert engine.state == "stopped"
        assert not stopping.done()
        go_on.set()
        await stopping
        assert engine.state == "stopped"

    employing(fault, check)


def test_the_end_does_not_wait_for_a_thread_that_hangs(clock):
    fault, go_on = Fault(), threading.Event()

    async def check(engine: Engine) -> None:
        engine._watching.cancel()
        fault.steps = [go_on]
        ask(engine)
        await eventually(lambda: not fault.steps)
        clock.ahead += LONG
        await asyncio.wait_for(engine.stop(), 20)
        assert engine._worker.alive
        go_on.set()
        await eventually(lambda: not engine._worker.alive)

    employing(fault, check)


@pytest.mark.usefixtures("at_once")
def test_the_end_comes_in_the_middle_of_a_replacement():
    fault, go_on = Fault(), threading.Event()

    async def check(engine: Engine) -> None:
        fault.steps, fault.loads = [broken(), broken()], [go_on]
        await fails(engine)
        await eventually(lambda: len(fault.fresh) == 2)
        await asyncio.wait_for(engine.stop(), 20)
        go_on.set()
        await eventually(lambda: not engine._worker.alive)
        assert engine.state == "stopped"

    employing(fault, check)


def test_an_engine_that_never_ran_can_be_stopped():
    def load(fresh: bool) -> Scheduler:
        raise ModelLoadError("no such model")

    async def check() -> None:
        engine = Engine(load)
        await engine.stop()
        engine = Engine(load)
        with pytest.raises(ModelLoadError):
            await engine.start()
        assert engine.state == "failed"
        await engine.stop()
        assert engine.state == "stopped"

    asyncio.run(check())


@pytest.mark.parametrize(("good_seconds", "pauses"), [(60.0, [0.0, 0.3, 0.6]), (0.0, [0.0, 0.0, 0.0])])
def test_who_dies_again_and_again_of_real_requests_is_started_after_longer_pauses(monkeypatch, good_seconds, pauses):
    monkeypatch.setattr(engine_thread, "RETRY_SECONDS", (0.0, 0.3, 0.6, 0.9))
    monkeypatch.setattr(engine_thread, "GOOD_SECONDS", good_seconds)
    fault, slept, sleep = Fault(), [], asyncio.sleep

    async def pause(seconds: float) -> None:
        if seconds in engine_thread.RETRY_SECONDS:
            slept.append(seconds)
            seconds = 0
        await sleep(seconds)

    async def check(engine: Engine) -> None:
        monkeypatch.setattr(asyncio, "sleep", pause)
        for _ in range(3):
            fault.steps = [broken(), broken()]
            await fails(engine)
            await answered(engine)

    employing(fault, check)
    assert slept == pauses


def test_a_replacement_knows_that_memory_was_exhausted(at_once):
    fault = Fault()

    async def check(engine: Engine) -> None:
        fault.steps = [MemoryError(), broken()]
        await fails(engine)
        await answered(engine)
        guard = fault.schedulers[-1]().guard
        assert guard.room < guard.pool

    employing(fault, check)
    assert len(fault.schedulers) == 2


def test_a_probe_that_fails_leaves_the_statistics_in_place():
    scheduler = FailingScheduler(Runner(network()), PrefixCache(0), 4)
    scheduler.fault = Fault(steps=[broken()])
    counts = scheduler.statistics
    with pytest.raises(RuntimeError, match=BROKEN):
        probe(scheduler)
    assert scheduler.statistics is counts
    scheduler.clear()
    probe(scheduler)
    assert counts.generated_tokens == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell which threads there are")
def test_a_thread_has_really_ended_when_its_engine_has():
    """MLX cleans up after Python has let go of a thread; if the process ends meanwhile, it aborts."""
    left = []

    def load(fresh: bool) -> Scheduler:
        left.append(Path(f"/proc/self/task/{threading.get_native_id()}"))
        # Something that MLX keeps for the thread.
        mx.eval(mx.compile(lambda x: x * 2)(mx.array([1.0, 2.0])))
        raise ModelLoadError("It does not fit.")

    async def try_it() -> bool:
        with pytest.raises(ModelLoadError):
            await Engine(load).start()
        return left[-1].exists()

    assert not any(asyncio.run(try_it()) for _ in range(5))
