"""When the engine fails, its requests end with a clear error, and the server goes on."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import mlx.core as mx
import pytest
import uvicorn

from jackfield.app import create_app
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.runner import CacheBatch, Runner
from jackfield.engine.scheduler import Events, Scheduler
from jackfield.engine.thread import Engine
from jackfield.errors import EngineError, ModelLoadError
from jackfield.events import Event, EventBus
from jackfield.models.device import Blas, Device
from jackfield.models.loading import load_network
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.settings import Settings

CAPACITY = 4
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "ignore_eos": True}


@dataclass
class Fault:
    """Makes the engine fail in one of its next steps."""

    steps: list[BaseException | threading.Event | None] = field(default_factory=list)
    """What happens in the next steps: an error, a wait, or nothing."""
    cancelling: list[Exception] = field(default_factory=list)
    """What goes wrong when requests are cancelled."""
    broken_rows: list[int] = field(default_factory=list)
    """Rows of the next decode steps whose logits are not numbers, one row a step."""
    free: int = 1 << 40
    """Bytes that the machine seems to have left."""
    loads: list[BaseException | None] = field(default_factory=list)
    """What happens when the model is loaded the next times."""
    engine: Engine | None = None
    heard: list[Event] = field(default_factory=list)
    """Events that went out."""

    def happen(self) -> None:
        match self.steps.pop(0) if self.steps else None:
            case BaseException() as error:
                raise error
            case threading.Event() as event:
                assert event.wait(60)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.heard]


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


class FailingRunner(Runner):
    """A real runner whose model goes wrong."""

    fault: Fault | None = None

    def decode(self, tokens: mx.array, caches: CacheBatch) -> mx.array:
        logits = super().decode(tokens, caches)
        if self.fault and self.fault.broken_rows:
            logits[self.fault.broken_rows.pop(0)] = mx.nan
        return logits


@contextmanager
def serving(folder: Path, fault: Fault, stall_seconds: float = 60) -> Iterator[str]:
    """The real application in this process."""

    def load() -> Scheduler:
        if fault.loads and (error := fault.loads.pop(0)):
            raise error
        network = load_network(folder, Device("cpu", "test", 1 << 30, Blas("test")))
        runner = FailingRunner(network.model)
        guard = MemoryGuard(1 << 40, 100, lambda: fault.free)
        scheduler = FailingScheduler(runner, PrefixCache(1 << 20), 4, guard)
        scheduler.fault = runner.fault = fault
        return scheduler

    bus = EventBus()
    bus.listen(fault.heard.append)
    engine = fault.engine = Engine(load, CAPACITY, stall_seconds=stall_seconds, events=bus, name="tiny")
    model = ServedModel("tiny", Tokenizer(folder), engine, 512, 49152, {})
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


def test_a_step_that_hangs_is_given_up_and_another_thread_takes_over(tiny_model):
    fault, go_on = Fault(), threading.Event()
    with serving(tiny_model, fault, stall_seconds=0.4) as url, ThreadPoolExecutor() as clients:
        hung = fault.engine._worker
        fault.steps, fault.loads = [go_on], [OSError("the disk hiccups"), OSError("again")]
        waiting = [clients.submit(chat, url), clients.submit(chat, url, stream=True)]
        until(lambda: fault.engine.state == "recovering")
        refused = httpx2.get(f"{url}/ready")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert chat(url).status_code == 503
        response = waiting[0].result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_error")
        assert events(waiting[1].result())[-1]["error"]["code"] == "engine_error"
        until_ready(url)
        assert chat(url).status_code == 200
        # The thread that was given up comes back, and nobody hears of it.
        go_on.set()
        hung.thread.join(60)
        assert not hung.thread.is_alive()
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


def test_a_bug_in_an_endpoint_is_an_envelope_too(url, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("jackfield.api.models._model", broken)
    response = httpx2.get(f"{url}/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


def test_a_body_that_is_too_large_is_413(url, monkeypatch):
    response = httpx2.post(f"{url}/v1/chat/completions", content=b" " * (Settings().max_body_bytes + 1), timeout=60)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


async def started(engine: Engine) -> None:
    await engine.start()


def test_a_model_that_does_not_load_fails_the_start():
    def load() -> Scheduler:
        raise ModelLoadError("no such model")

    engine = Engine(load)
    with pytest.raises(ModelLoadError, match="no such model"):
        asyncio.run(started(engine))
    assert not engine.ready


def test_a_stopped_engine_refuses_and_ready_says_so(tiny_model, fault):
    from jackfield.engine.request import GenerationRequest, SamplingParameters

    fault.steps = []
    with serving(tiny_model, fault) as address:
        assert httpx2.get(f"{address}/ready").status_code == 200

    async def check() -> None:
        network_free = Engine(lambda: FailingScheduler.__new__(FailingScheduler))
        assert not network_free.ready
        with pytest.raises(EngineError):
            network_free.submit(GenerationRequest("a", (1,), 1, SamplingParameters()), lambda _: None)

    asyncio.run(check())
