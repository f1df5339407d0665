"""Prometheus is told what happens, in names that do not change, with labels that no client can make."""

import json
import re
import string
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from contract import document
from jackfield.engine.memory import Pressure
from jackfield.engine.request import CacheUse, FinishEvent, StartEvent
from jackfield.engine.statistics import Statistics
from jackfield.errors import EngineError
from jackfield.hooks import hookimpl
from jackfield.metrics.buckets import BATCH_SIZES, REQUEST_SECONDS, TOKEN_SECONDS, TOKENS
from jackfield.metrics.engines import PRESSURES, EngineCollector
from jackfield.models.plan import MemoryPlan, plan_memory
from jackfield.testing.engine import tokens
from jackfield.testing.server import JackfieldServer, StartServer, serving
from scripted_engine import Stage, staged
from serving import Server

TOLD = Statistics(
    waiting=1,
    reading=2,
    running=3,
    prompt_tokens=100,
    cached_tokens=Counter(memory=40, disk=20),
    generated_tokens=50,
    batch_sizes=Counter({1: 10, 3: 5, 5000: 1}),
    queried_tokens=90,
    misses=Counter(new=4, diverged=5),
    hits=6,
    preemptions=7,
    restarts=8,
    load_seconds=2.5,
    kv_bytes=9,
    kv_pool_bytes=18,
    cache_bytes={"memory": 10, "disk": 11},
    evictions={"memory": 12, "disk": 13},
    device_bytes=140,
    pressure="slowing",
)
SERIES = {
    "jackfield_num_requests_waiting": 1,
    "jackfield_num_requests_running": 5,
    "jackfield_num_requests_reading": 2,
    "jackfield_prompt_tokens_total": 100,
    "jackfield_prompt_tokens_cached_total tier=memory": 40,
    "jackfield_prompt_tokens_cached_total tier=disk": 20,
    "jackfield_generation_tokens_total": 50,
    "jackfield_batch_size_bucket le=1.0": 10,
    "jackfield_batch_size_bucket le=2.0": 10,
    **{f"jackfield_batch_size_bucket le={bound}": 15 for bound in BATCH_SIZES[2:]},
    "jackfield_batch_size_bucket le=+Inf": 16,
    "jackfield_batch_size_count": 16,
    "jackfield_batch_size_sum": 5025,
    "jackfield_prefix_cache_queries_total": 90,
    "jackfield_prefix_cache_hits_total tier=memory": 40,
    "jackfield_prefix_cache_hits_total tier=disk": 20,
    "jackfield_prefix_cache_miss_requests_total reason=new": 4,
    "jackfield_prefix_cache_miss_requests_total reason=diverged": 5,
    "jackfield_prefix_cache_hit_requests_total": 6,
    "jackfield_num_preemptions_total": 7,
    "jackfield_engine_restarts_total": 8,
    "jackfield_engine_ready": 1,
    "jackfield_model_load_seconds": 2.5,
    "jackfield_kv_cache_usage_perc": 0.5,
    "jackfield_prefix_cache_bytes tier=memory": 10,
    "jackfield_prefix_cache_bytes tier=disk": 11,
    "jackfield_prefix_cache_evicted_blocks_total tier=memory": 12,
    "jackfield_prefix_cache_evicted_blocks_total tier=disk": 13,
    "jackfield_memory_bytes kind=weights": 100,
    "jackfield_memory_bytes kind=kv_cache": 9,
    "jackfield_memory_bytes kind=prefix_cache": 10,
    "jackfield_memory_bytes kind=other": 21,
    "jackfield_device_memory_bytes": 140,
    "jackfield_memory_pressure level=none": 0,
    "jackfield_memory_pressure level=evicting": 0,
    "jackfield_memory_pressure level=slowing": 1,
    "jackfield_memory_pressure level=refusing": 0,
}

CHAT = "endpoint=/chat/completions model_name=scripted"


@pytest.fixture(scope="module")
def stage(tiny_model: Path) -> Iterator[Stage]:
    with staged(tiny_model) as stage:
        yield stage


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JackfieldServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JACKFIELD_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        with serving(jackfield_tokenizer) as server:
            yield server


def scrape(url: str) -> dict[str, float]:
    """Every sample of Jackfield's own, by name and labels."""
    response = httpx2.get(f"{url}/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)
    return {name: value for family in families for name, value in samples(family) if name.startswith("jackfield_")}


def samples(family: Metric) -> Iterator[tuple[str, float]]:
    for sample in family.samples:
        labels = (f"{name}={value}" for name, value in sorted(sample.labels.items()))
        yield " ".join([sample.name, *labels]), sample.value


class Growth:
    """What has changed since this was made."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before = scrape(url)

    def of(self, name: str) -> dict[str, float]:
        """The series of this name that have grown, by their labels; a bucket is not one of them."""
        now = {key: value - self._before.get(key, 0) for key, value in scrape(self._url).items()}
        return {key.partition(" ")[2]: value for key, value in now.items() if key.split()[0] == name and value}

    def one(self, name: str, labels: str = "model_name=scripted") -> float:
        """By how much a series has grown."""
        return self.of(name).get(labels, 0.0)


def plan(weights: int) -> MemoryPlan:
    return plan_memory(total=1 << 20, weights=weights, workspace=0, layers=(), context_length=16, slots=1)


# --- The engine -------------------------------------------------------------------------------------------------------


def test_every_number_of_the_engine_has_its_series(stage: Stage) -> None:
    stage.engine.statistics = TOLD
    stage.model.plan = plan(100)
    found = {name.replace(" model_name=actor", ""): value for name, value in scrape(stage.url).items()}
    assert {name: value for name, value in found.items() if name in SERIES} == SERIES
    others = {name.split()[0] for name in found.keys() - SERIES.keys()}
    assert others <= {"jackfield_build_info", "jackfield_http_requests_total"}


def test_a_new_engine_says_zero(stage: Stage) -> None:
    stage.engine.statistics, stage.model.plan = Statistics(), plan(0)
    found = {name.replace(" model_name=actor", ""): value for name, value in scrape(stage.url).items()}
    assert found["jackfield_memory_pressure level=none"] == found["jackfield_engine_ready"] == 1
    assert {name for name, value in found.items() if name in SERIES and value} == {
        "jackfield_memory_pressure level=none",
        "jackfield_engine_ready",
    }


def test_an_engine_that_does_not_answer_is_not_ready(stage: Stage) -> None:
    stage.engine.state = "recovering"
    assert scrape(stage.url)["jackfield_engine_ready model_name=actor"] == 0
    stage.engine.state = "ready"
    assert scrape(stage.url)["jackfield_engine_ready model_name=actor"] == 1


def test_levels_are_those_of_the_memory_guard() -> None:
    assert [level.name.lower() for level in Pressure] == list(PRESSURES)


def test_what_is_told_of_statistics_stays_as_it_was() -> None:
    statistics = Statistics(cached_tokens=Counter(memory=40), running=2)
    report = statistics.report()
    statistics.cached_tokens["memory"] += 1
    assert json.loads(json.dumps(report))["cached_tokens"] == {"memory": 40}
    assert report["running"] == 2


def test_a_real_engine_counts(tiny_server: Server) -> None:
    model = f"model_name={tiny_server.model}"
    growth = Growth(tiny_server.url)
    body = {"model": tiny_server.model, "prompt": "Pack my box. " * 30, "max_tokens": 7, "ignore_eos": True}
    usage = [httpx2.post(f"{tiny_server.api}/completions", json=body).json()["usage"] for _ in range(2)]
    assert growth.one("jackfield_generation_tokens_total", model) == 14
    assert growth.one("jackfield_batch_size_sum", model) == 14
    assert growth.one("jackfield_batch_size_count", model) == 14
    assert growth.one("jackfield_prompt_tokens_total", model) == 2 * usage[0]["prompt_tokens"]
    assert growth.one("jackfield_prefix_cache_queries_total", model) == 2 * usage[0]["prompt_tokens"]
    cached = usage[1]["prompt_tokens_details"]["cached_tokens"]
    assert growth.one("jackfield_prompt_tokens_cached_total", f"{model} tier=memory") == cached > 0
    assert growth.one("jackfield_prefix_cache_hits_total", f"{model} tier=memory") == cached
    assert growth.one("jackfield_prefix_cache_hit_requests_total", model) == 1
    assert growth.one("jackfield_prefix_cache_miss_requests_total", f"{model} reason=new") == 1
    assert growth.one("jackfield_request_prefill_time_seconds_count", model) == 2
    assert growth.one("jackfield_request_prefill_time_seconds_sum", model) > 0
    assert growth.one("jackfield_request_decode_time_seconds_sum", model) > 0
    after = scrape(tiny_server.url)
    assert after[f"jackfield_prefix_cache_bytes {model} tier=memory"] > 0
    kinds = [after[f"jackfield_memory_bytes kind={kind} {model}"] for kind in ("weights", "prefix_cache", "other")]
    assert all(kinds)
    assert sum(kinds) == after[f"jackfield_device_memory_bytes {model}"]
    assert after[f"jackfield_num_requests_running {model}"] == 0
    assert after[f"jackfield_model_load_seconds {model}"] > 0


# --- Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_answered(server: JackfieldServer, stream: bool) -> None:
    growth = Growth(server.url)
    start = StartEvent(0.75, CacheUse(4, miss="diverged"))
    said = [[token] for token in tokens(server.tokenizer.encode("Hello"), -0.1, 0.3)]
    server.plays([[start], *said, [FinishEvent("stop", prefill_seconds=2.0, decode_seconds=0.5)]])
    assert server.chat("Hi", stream=stream).content == "Hello"
    assert growth.of("jackfield_requests_total") == {f"{CHAT} status=200": 1}
    reason = "endpoint=/chat/completions finished_reason=stop model_name=scripted"
    assert growth.of("jackfield_request_success_total") == {reason: 1}
    assert growth.of("jackfield_time_to_first_token_seconds_count") == {CHAT: 1}
    assert growth.of("jackfield_e2e_request_latency_seconds_count") == {CHAT: 1}
    first, whole = (growth.one(f"jackfield_{name}_seconds_sum", CHAT) for name in ("time_to_first_token", E2E))
    assert 0 < first < whole
    assert growth.one("jackfield_inter_token_latency_seconds_count") == 4
    assert growth.one("jackfield_inter_token_latency_seconds_sum") < whole
    assert growth.one("jackfield_request_queue_time_seconds_sum") == 0.75
    assert growth.one("jackfield_request_prefill_time_seconds_sum") == 2.0
    assert growth.one("jackfield_request_decode_time_seconds_sum") == 0.5
    assert growth.one("jackfield_request_generation_tokens_sum") == 5
    assert growth.one("jackfield_request_prompt_tokens_sum") == len(server.requests[-1].prompt)


E2E = "e2e_request_latency"


def test_several_choices_are_one_request(server: JackfieldServer) -> None:
    growth = Growth(server.url)
    server.says("One")
    server.says("Three", finish="length")
    server.says("Four", finish="timeout")
    assert server.chat("Hi", n=3).status == 200
    assert growth.of("jackfield_requests_total") == {f"{CHAT} status=200": 1}
    reasons = {re.search(r"reason=(\w+)", labels)[1] for labels in growth.of("jackfield_request_success_total")}  # type: ignore[index]
    assert reasons == {"stop", "length", "timeout"}
    assert growth.one("jackfield_time_to_first_token_seconds_count", CHAT) == 1
    assert growth.one("jackfield_inter_token_latency_seconds_count") == 2 + 4 + 3
    assert growth.one("jackfield_request_generation_tokens_count") == 3
    assert growth.one("jackfield_request_generation_tokens_sum") == 3 + 5 + 4
    assert growth.one("jackfield_request_prompt_tokens_sum") == len(server.requests[-1].prompt)


def test_an_answer_that_calls_a_tool(server: JackfieldServer) -> None:
    growth = Growth(server.url)
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    server.says('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert server.chat("What time is it?", tools=[tool]).finish_reason == "tool_calls"
    reason = "endpoint=/chat/completions finished_reason=tool_calls model_name=scripted"
    assert growth.of("jackfield_request_success_total") == {reason: 1}


def test_embeddings_are_requests_without_tokens(server: JackfieldServer) -> None:
    growth = Growth(server.url)
    assert server.post("/v1/embeddings", {"model": "scripted", "input": ["a", "bcd"]}).status == 200
    labels = "endpoint=/embeddings model_name=scripted"
    assert growth.of("jackfield_requests_total") == {f"{labels} status=200": 1}
    assert growth.of("jackfield_e2e_request_latency_seconds_count") == {labels: 1}
    assert growth.one("jackfield_request_prompt_tokens_sum") > 3
    assert (
        growth.of("jackfield_request_success_total") == growth.of("jackfield_time_to_first_token_seconds_count") == {}
    )


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_before_the_first_token(server: JackfieldServer, stream: bool) -> None:
    growth = Growth(server.url)
    server.says("", error=EngineError("It broke."))
    assert server.chat("Hi", stream=stream).status in (200, 503)
    assert growth.of("jackfield_requests_total") == {f"{CHAT} status=503": 1}
    assert (
        growth.of("jackfield_request_success_total") == growth.of("jackfield_e2e_request_latency_seconds_count") == {}
    )
    assert growth.of("jackfield_time_to_first_token_seconds_count") == {}


def test_a_stream_that_breaks_has_failed_although_it_began_with_200(server: JackfieldServer) -> None:
    growth = Growth(server.url)
    server.says("Hel", error=EngineError("It broke."))
    assert server.chat("Hi", stream=True).content == "Hel"
    assert growth.of("jackfield_requests_total") == {f"{CHAT} status=503": 1}
    assert growth.one("jackfield_http_requests_total", "endpoint=/chat/completions method=POST status=200") == 1
    assert growth.of("jackfield_request_success_total") == {}
    assert growth.one("jackfield_time_to_first_token_seconds_count", CHAT) == 1


def test_a_client_that_hangs_up(server: JackfieldServer) -> None:
    growth = Growth(server.url)
    server.says("Hello, you", seconds_per_token=0.05)
    with server.streaming("Hi") as chunks:
        next(chunks)
    server.wait_until(lambda: growth.of("jackfield_requests_total"))
    assert growth.of("jackfield_requests_total") == {f"{CHAT} status=499": 1}
    assert growth.of("jackfield_request_success_total") == {}


def test_requests_that_are_refused(server: JackfieldServer) -> None:
    growth = Growth(server.url)
    assert server.chat("Hi", temperature="hot").status == 400
    assert server.chat("Hi", model="gpt-99").status == 404
    assert server.get("/v1/chat/completions").status == 405
    unknown = "endpoint=/chat/completions model_name=unknown status=404"
    assert growth.of("jackfield_requests_total") == {f"{CHAT} status=400": 1, unknown: 1, f"{CHAT} status=405": 1}
    http = "endpoint=/chat/completions method={} status={}"
    counted = {("POST", 400), ("POST", 404), ("GET", 405)}
    found = growth.of("jackfield_http_requests_total")
    assert {http.format(*one) for one in counted} <= found.keys()


def test_an_error_that_nobody_expected(jackfield_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = jackfield_server()
    # Other servers have the same tokenizer.
    monkeypatch.setattr(server.tokenizer, "encode", lambda *_, **__: 1 / 0)
    assert server.chat("Hi").status == 500
    found = scrape(server.url)
    assert found[f"jackfield_requests_total {CHAT} status=500"] == 1
    assert found["jackfield_http_requests_total endpoint=/chat/completions method=POST status=500"] == 1


# --- Plugins ----------------------------------------------------------------------------------------------------------


class Elsewhere:
    """A backend that is not there, though it says so."""

    def __init__(self, server: object) -> None:
        pass

    def serves(self, request: object) -> bool:
        return True

    async def answer(self, request: object, body: dict[str, Any]) -> AsyncIterator[str]:
        if body["messages"][0]["content"] == "Fail":
            raise OSError("unplugged")
        yield "From "
        yield "afar"


class Brings:
    @hookimpl
    def register_backends(self, register: Any) -> None:
        register("elsewhere", Elsewhere)

    @hookimpl
    def select_backend(self, available: tuple[str, ...]) -> str | None:
        return "elsewhere" if "elsewhere" in available else None

    @hookimpl
    def register_routes(self, server: Any) -> list[Route]:
        async def ask(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await server.complete([{"role": "user", "content": "Hi"}], max_tokens=5))

        return [Route("/ask/{whom}", ask)]


def test_backends_that_answer_or_do_not(jackfield_server: StartServer) -> None:
    server = jackfield_server(("b", Brings()), may_fail=True)
    growth = Growth(server.url)
    assert server.chat("Hi").content == "From afar"
    assert growth.of("jackfield_backend_fallbacks_total") == {}
    assert growth.one("jackfield_request_generation_tokens_count") == 1
    assert growth.of("jackfield_request_decode_time_seconds_count") == {}
    server.says("Here")
    assert server.chat("Fail").content == "Here"
    assert growth.of("jackfield_backend_fallbacks_total") == {"backend=elsewhere model_name=scripted": 1}
    assert growth.of("jackfield_requests_total") == {f"{CHAT} status=200": 2}
    failures = "hook=register_backends plugin=b"
    assert growth.of("jackfield_plugin_failures_total") == {failures: 1}


def test_what_plugins_ask_is_counted_apart(jackfield_server: StartServer) -> None:
    server = jackfield_server(("b", Brings()))
    growth = Growth(server.url)
    server.says("Hello")
    assert server.get("/ask/anybody").text == "Hello"
    assert growth.of("jackfield_requests_total") == {"endpoint=plugin model_name=scripted status=200": 1}
    assert growth.one("jackfield_http_requests_total", "endpoint=/ask/{whom} method=GET status=200") == 1


def test_plugins_that_are_disabled(jackfield_server: StartServer) -> None:
    class Bad:
        @hookimpl
        def transform_request(self) -> None:
            raise ValueError("no")

    server = jackfield_server(("bad", Bad()), may_fail=True, max_plugin_failures=2)
    assert scrape(server.url)["jackfield_plugin_active plugin=bad"] == 1
    for _ in range(2):
        server.chat("Hi")
    found = scrape(server.url)
    assert found["jackfield_plugin_active plugin=bad"] == 0
    assert found["jackfield_plugin_failures_total hook=transform_request plugin=bad"] == 2


# --- Labels -----------------------------------------------------------------------------------------------------------


def attack(server: JackfieldServer, random: Random) -> None:
    """What a client can write, all of it new."""
    word = "".join(random.choices(string.ascii_letters, k=12))
    headers = {"X-Request-ID": word, "User-Agent": word, f"X-{word}": word, "Authorization": f"Bearer {word}"}
    server.get(f"/{word}", headers=headers)
    server.get(f"/v1/models/{word}?{word}={word}", headers=headers)
    server.get(f"/v1/responses/resp_{word}", headers=headers)
    server.post(f"/v1/chat/completions/{word}", {"model": word}, headers=headers)
    server.request(word.upper(), "/v1/models", headers=headers)
    server.request(word.upper(), f"/{word}", headers=headers)
    server.chat(word, model=word, headers=headers)
    server.chat(word, user=word, metadata={word: word}, headers=headers)
    server.post("/v1/embeddings", {"model": word, "input": word}, headers=headers)
    server.post("/v1/completions", {"model": "scripted", word: word}, headers=headers)
    server.chat(word, jackfield={word: {}}, headers=headers)


def test_no_client_can_make_labels(server: JackfieldServer) -> None:
    random = Random(1)
    attack(server, random)
    before = scrape(server.url).keys()
    for _ in range(5):
        attack(server, random)
    assert scrape(server.url).keys() == before
    assert sum(name.startswith(("jackfield_requests_total", "jackfield_http_requests_total")) for name in before) < 40


# --- The text ---------------------------------------------------------------------------------------------------------


def test_it_is_written_off_the_event_loop(server: JackfieldServer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    collect = EngineCollector.collect

    def recorded(self: EngineCollector) -> Iterator[Any]:
        threads.append(threading.current_thread().name)
        return collect(self)

    monkeypatch.setattr(EngineCollector, "collect", recorded)
    scrape(server.url)
    assert threads
    assert "jackfield-testing" not in threads


def test_versions_are_told(server: JackfieldServer) -> None:
    (name,) = [name for name in scrape(server.url) if name.startswith("jackfield_build_info")]
    assert re.search(r"mlx=\d.* mlx_lm=\d.* python=3\.\d.* version=\d", name)


@pytest.mark.parametrize(
    ("bounds", "least", "most"),
    [(TOKEN_SECONDS, 0.001, 60), (REQUEST_SECONDS, 0.005, 32_000 / 15), (TOKENS, 1, 262_144), (BATCH_SIZES, 1, 1024)],
)
def test_buckets_fit_small_models_and_large_ones(bounds: tuple[float, ...], least: float, most: float) -> None:
    assert bounds[0] <= least < most <= bounds[-1]
    steps = [after / before for before, after in pairwise(bounds)]
    assert all(1.5 < step <= 2 for step in steps)
    assert len(bounds) < 40


ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| .+ \|$", re.MULTILINE)


def test_the_docs_have_every_metric(server: JackfieldServer) -> None:
    server.says("Hello")
    server.chat("Hi")
    page = (Path(__file__).parent.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(page)}
    families = text_string_to_metric_families(httpx2.get(f"{server.url}/metrics").text)
    served = {of_docs(family): (family.type, labels_of(family)) for family in families}
    # Nothing has fallen back, and no cache was there to be hit, so these have no series yet.
    for name in [name for name, (_, labels) in served.items() if not labels and documented.get(name, ("", ()))[1]]:
        served[name] = (served[name][0], documented[name][1])
    assert served == documented


def test_the_example_is_of_metrics_that_there_are(server: JackfieldServer) -> None:
    answer = document()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]["text/plain"]
    example = list(text_string_to_metric_families(answer["examples"]["series"]["value"]))
    told = httpx2.get(f"{server.url}/metrics").text
    served = {family.name: family for family in text_string_to_metric_families(told)}
    assert {family.type for family in example} == {"gauge", "counter", "histogram"}
    for family in example:
        there = served[family.name]
        assert (family.type, family.documentation) == (there.type, there.documentation)


def of_docs(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(family: Metric) -> frozenset[str]:
    return frozenset({label for sample in family.samples for label in sample.labels} - {"le"})
