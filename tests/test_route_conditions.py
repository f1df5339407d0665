"""When a way of a route is passed over and when it is tried again: queues, what is ready, and probes of what failed."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from faulty_upstream import HANGS, FaultyUpstream, refuses
from jackfield.testing import JackfieldServer, Reply, serving

FAILS = refuses(500, b"oops")
PATIENCE = 20.0
"""Seconds after which something has not happened."""


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, faulty: FaultyUpstream) -> Iterator[JackfieldServer]:
    frail = {"url": faulty.url, "max_failures": 1, "rest_seconds": 0.05, "window_seconds": 0.3}
    upstreams: dict[str, dict[str, Any]] = {
        "busy": {"url": faulty.url},
        "frail": frail,
        "shaky": {**frail, "rest_seconds": 0.01},
        "spared": {**frail, "rest_seconds": 0.01, "window_seconds": 600},
        "dead": {**frail, "rest_seconds": 600},
    }
    models = {
        "scripted": {"route": [{"backend": "mlx", "max_queue": 1}, "busy"]},
        "queued": {"route": [{"backend": "busy", "max_queue": 0}]},
        "frail": {"route": ["frail"]},
        "shaky": {"route": [{"backend": "shaky", "ready": True}]},
        "spared": {"route": [{"backend": "spared", "ready": True}]},
        "dead": {"route": ["dead"]},
    }
    with serving(jackfield_tokenizer, models=models, upstreams=upstreams) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(faulty: FaultyUpstream) -> None:
    faulty.acts.clear()
    faulty.bodies.clear()
    faulty.hung_up.clear()


def until(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


def tried(reply: Reply) -> list[tuple[str, str, str | None]]:
    return [(one["backend"], one["outcome"], one.get("reason")) for one in reply.extension["attempts"]]


def state(server: JackfieldServer, upstream: str) -> str:
    lines = server.get("/metrics").text.splitlines()
    own = [line for line in lines if line.startswith("jackfield_upstream_state") and f'upstream="{upstream}"' in line]
    (line,) = [line for line in own if line.endswith("1.0")]
    return line.split('state="')[1].partition('"')[0]


def test_who_has_a_queue_is_passed_over(server: JackfieldServer, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.statistics.waiting = 2
    with caplog.at_level("INFO", "jackfield.api.routing"):
        reply = server.chat("Hi", jackfield=True)
    logged = [(one.getMessage(), vars(one)["request_id"]) for one in caplog.records if "routing" in one.name]
    assert logged == [("scripted: mlx is left out: queue", reply.request_id)]
    assert tried(reply) == [("mlx", "skipped", "queue"), ("busy", "answered", None)]
    assert reply.extension["backend"] == "busy"
    skipped = 'backend="mlx",model_name="scripted",outcome="skipped",reason="queue"'
    assert f"jackfield_route_attempts_total{{{skipped}}} 1.0" in server.get("/metrics").text
    assert server.record("backend", reply.request_id).data["reason"] == "next in the route after mlx: queue"
    server.engine.statistics.waiting = 1
    server.says("Mine.")
    assert tried(server.chat("Hi", jackfield=True)) == [("mlx", "answered", None)]
    server.engine.statistics.waiting = 0


def test_the_queue_at_an_upstream_is_of_those_that_wait_there(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(HANGS)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.chat, "Hi", model="queued", timeout=2)
        until(lambda: faulty.bodies)
        error = server.chat("Hi", model="queued").json["error"]
        assert (error["code"], "busy: queue" in error["message"]) == ("no_backend", True)
        assert first.result().status == 504
    assert server.chat("Hi", model="queued").content == "Hello"


def test_one_request_tries_who_has_failed(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts += [FAILS, HANGS]
    assert server.chat("Hi", model="frail").status == 502
    until(lambda: state(server, "frail") == "half_open")
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(server.chat, "Hi", model="frail", timeout=2)
        until(lambda: len(faulty.bodies) == 2)
        assert "frail: circuit_open" in server.chat("Hi", model="frail").json["error"]["message"]
        assert probe.result().json["error"]["code"] == "deadline_exceeded"
    assert len(faulty.bodies) == 2
    # It was the client's own limit, which says nothing of the server: somebody else may try.
    assert server.chat("Hi", model="frail").content == "Hello"
    assert state(server, "frail") == "closed"


def test_a_probe_that_fails_opens_it_again(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(FAILS)
    assert server.chat("Hi", model="dead").status == 502
    assert state(server, "dead") == "open"
    assert server.chat("Hi", model="dead").status == 503
    faulty.acts += [FAILS, FAILS]
    assert server.chat("Hi", model="frail").status == 502
    until(lambda: state(server, "frail") == "half_open")
    assert server.chat("Hi", model="frail").status == 502
    assert len(faulty.bodies) == 3
    until(lambda: server.chat("Hi", model="frail").status == 200)


def test_who_is_asked_only_while_it_is_well_is_asked_again_in_time(
    server: JackfieldServer, faulty: FaultyUpstream
) -> None:
    faulty.acts += [FAILS, FAILS]
    for name in ("spared", "shaky"):
        assert server.chat("Hi", model=name).status == 502
    until(lambda: "spared: not_ready" in server.chat("Hi", model="spared").text)
    until(lambda: server.chat("Hi", model="shaky").status == 200)
    assert state(server, "shaky") == "closed"
