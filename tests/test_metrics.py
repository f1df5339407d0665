"""Prometheus is told what the engine counts, in names that do not change."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jackfield.engine.memory import Pressure
from jackfield.engine.statistics import Statistics
from jackfield.metrics import PRESSURES
from scripted_engine import Stage, staged
from serving import Server

TOLD = Statistics(
    waiting=1,
    reading=2,
    running=3,
    prompt_tokens=100,
    cached_tokens=Counter(memory=40, disk=20),
    generated_tokens=50,
    misses=Counter(new=4, diverged=5),
    hits=6,
    preemptions=7,
    restarts=8,
    kv_bytes=9,
    cache_bytes={"memory": 10, "disk": 11},
    evictions={"memory": 12, "disk": 13},
    device_bytes=14,
    pressure="slowing",
)
SERIES = {
    "jackfield_num_requests_waiting": 1,
    "jackfield_num_requests_reading": 2,
    "jackfield_num_requests_running": 3,
    "jackfield_prompt_tokens_total": 100,
    "jackfield_prompt_tokens_cached_total tier=memory": 40,
    "jackfield_prompt_tokens_cached_total tier=disk": 20,
    "jackfield_generation_tokens_total": 50,
    "jackfield_prefix_cache_miss_requests_total reason=new": 4,
    "jackfield_prefix_cache_miss_requests_total reason=diverged": 5,
    "jackfield_prefix_cache_hit_requests_total": 6,
    "jackfield_num_preemptions_total": 7,
    "jackfield_engine_restarts_total": 8,
    "jackfield_kv_cache_bytes": 9,
    "jackfield_prefix_cache_bytes tier=memory": 10,
    "jackfield_prefix_cache_bytes tier=disk": 11,
    "jackfield_prefix_cache_evicted_blocks_total tier=memory": 12,
    "jackfield_prefix_cache_evicted_blocks_total tier=disk": 13,
    "jackfield_device_memory_bytes": 14,
    "jackfield_memory_pressure level=none": 0,
    "jackfield_memory_pressure level=evicting": 0,
    "jackfield_memory_pressure level=slowing": 1,
    "jackfield_memory_pressure level=refusing": 0,
}


@pytest.fixture(scope="module")
def stage(tiny_model: Path) -> Iterator[Stage]:
    with staged(tiny_model) as stage:
        yield stage


def scrape(url: str, model: str) -> dict[str, float]:
    """Every sample, by name and the labels it has besides the model's."""
    response = httpx2.get(f"{url}/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            labels: dict[str, Any] = dict(sample.labels)
            assert labels.pop("model") == model
            found[" ".join([sample.name, *(f"{name}={value}" for name, value in labels.items())])] = sample.value
    return found


def test_every_number_of_the_engine_has_its_series(stage: Stage) -> None:
    stage.engine.statistics = TOLD
    assert scrape(stage.url, "actor") == SERIES


def test_a_new_engine_says_zero(stage: Stage) -> None:
    stage.engine.statistics = Statistics()
    found = scrape(stage.url, "actor")
    assert found.pop("jackfield_memory_pressure level=none") == 1
    assert set(found.values()) == {0}


def test_the_docs_name_every_series() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    for name in {series.partition(" ")[0].removeprefix("jackfield_") for series in SERIES}:
        assert f"`{name}`" in page or f"`{name}{{" in page


def test_levels_are_those_of_the_memory_guard() -> None:
    assert [level.name.lower() for level in Pressure] == list(PRESSURES)


def test_a_real_engine_counts(tiny_server: Server) -> None:
    before = scrape(tiny_server.url, tiny_server.model)
    body = {"model": tiny_server.model, "prompt": "Pack my box. " * 30, "max_tokens": 7, "ignore_eos": True}
    usage = [httpx2.post(f"{tiny_server.api}/completions", json=body).json()["usage"] for _ in range(2)]
    after = scrape(tiny_server.url, tiny_server.model)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["jackfield_generation_tokens_total"] == 14
    assert grown["jackfield_prompt_tokens_total"] == 2 * usage[0]["prompt_tokens"]
    cached = usage[1]["prompt_tokens_details"]["cached_tokens"]
    assert grown["jackfield_prompt_tokens_cached_total tier=memory"] == cached > 0
    assert grown["jackfield_prefix_cache_hit_requests_total"] == 1
    assert grown["jackfield_prefix_cache_miss_requests_total reason=new"] == 1
    assert after["jackfield_prefix_cache_bytes tier=memory"] > 0
    assert after["jackfield_device_memory_bytes"] > 0
    assert after["jackfield_num_requests_running"] == 0
