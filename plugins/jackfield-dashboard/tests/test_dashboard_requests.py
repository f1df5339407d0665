"""Requests as ``/dashboard/state`` tells of them: where they are, how they went, and nothing of what was said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jackfield.errors import EngineError
from jackfield.hooks import Confidence, LogRecord, RequestInfo, hookimpl
from jackfield.testing import JackfieldServer, StartServer, serving
from jackfield_dashboard.journal import LONGEST_NAME, Journal

SECRET = "xyzzy-plugh"


class Judge:
    """Trusts the first choice more than the second."""

    @hookimpl
    async def score_confidence(self, outcome: Any) -> Confidence:
        return Confidence(0.75 - outcome.choice / 2, "low" if outcome.choice else "high", {"choice": outcome.choice})


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JackfieldServer]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("JACKFIELD_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        with serving(jackfield_tokenizer, "dashboard", ("judge", Judge())) as server:
            yield server


def entry(server: JackfieldServer, request_id: str, state: str) -> dict[str, Any]:
    """A request, as soon as it is in this state."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        requests = server.get("/dashboard/state").json["requests"]
        found[:] = [one for one in requests if (one["id"], one["state"]) == (request_id, state)]
        return bool(found)

    server.wait_until(there)
    return found[-1]


def test_an_answer_is_told_in_numbers(server: JackfieldServer) -> None:
    server.says("Good morning.", cached_tokens=3)
    reply = server.chat("Hi", stream=True)
    told = entry(server, reply.request_id, "completed")
    assert (told["endpoint"], told["model"], told["stream"]) == ("/chat/completions", "scripted", True)
    assert (told["cached_tokens"], told["completion_tokens"], told["finish"]) == (3, 13, ["stop"])
    assert told["prompt_tokens"] > 3
    assert 0 < told["first_token_seconds"] < told["seconds"]
    assert 0 < told["between_tokens_seconds"] < told["seconds"]
    assert told["confidence"] == {"judge": {"score": 0.75, "label": "high"}}
    assert not told["slow"]
    assert told["backend"] == "mlx"


def test_a_request_is_told_from_the_moment_it_waits(server: JackfieldServer) -> None:
    with server.held(), server.streaming("Hi", headers={"X-Request-ID": "held"}) as chunks:
        next(chunks)
        told = entry(server, "held", "answering")
        assert told["first_token_seconds"] > 0
        assert told["seconds"] is told["ended"] is None
    assert entry(server, "held", "cancelled")["seconds"] > 0


def test_a_failure_is_told_by_its_code(server: JackfieldServer) -> None:
    server.says("", error=EngineError(f"it broke at {SECRET}"))
    broken = server.chat("Hi")
    told = entry(server, broken.request_id, "failed")
    assert (told["status"], told["code"]) == (broken.status, broken.json["error"]["code"])
    refused = server.post("/v1/chat/completions", {"model": SECRET[:5], "messages": [], "stream": SECRET})
    told = entry(server, refused.request_id, "failed")
    assert (told["status"], told["model"]) == (400, "")


def test_nothing_that_was_said_is_told(server: JackfieldServer) -> None:
    server.says(f"You said {SECRET}.")
    said = server.chat(f"Say {SECRET}!", stream=True, user=SECRET, metadata={"word": SECRET})
    assert SECRET in said.content
    wrong = server.chat(SECRET, tools=SECRET, stop=[SECRET] * 99)
    assert wrong.status == 400
    server.says(SECRET, error=EngineError(f"it broke at {SECRET}"))
    broken = server.chat("Hi")
    assert SECRET in broken.text
    entry(server, broken.request_id, "failed")
    entry(server, said.request_id, "completed")
    entry(server, wrong.request_id, "failed")
    assert SECRET not in server.get("/dashboard/state").text


def test_embeddings_have_no_first_token(server: JackfieldServer) -> None:
    reply = server.post("/v1/embeddings", {"model": "scripted", "input": "Hi"})
    told = entry(server, reply.request_id, "completed")
    assert (told["endpoint"], told["first_token_seconds"], told["between_tokens_seconds"]) == (
        "/embeddings",
        None,
        None,
    )
    assert told["confidence"] == {}


def test_of_several_choices_the_least_trusted_counts(server: JackfieldServer) -> None:
    server.says("One.")
    server.says("Two.", finish="length")
    told = entry(server, server.chat("Hi", n=2).request_id, "completed")
    assert told["confidence"] == {"judge": {"score": 0.25, "label": "low"}}
    assert told["finish"] == ["stop", "length"]


def test_one_id_may_come_twice(server: JackfieldServer) -> None:
    for _ in range(2):
        server.chat("Hi", headers={"X-Request-ID": "twin"})
    entry(server, "twin", "completed")

    def both() -> bool:
        requests = server.get("/dashboard/state").json["requests"]
        return [one["state"] for one in requests if one["id"] == "twin"] == ["completed"] * 2

    server.wait_until(both)


def test_latencies_are_those_of_the_answers(server: JackfieldServer) -> None:
    server.says("Good morning.", seconds_per_token=0.01)
    entry(server, server.chat("Hi").request_id, "completed")
    told = server.get("/dashboard/state").json
    for name in ("first_token", "between_tokens"):
        known = sorted(one[f"{name}_seconds"] for one in told["requests"] if one[f"{name}_seconds"] and one["finish"])
        latency = told["latency"][name]
        assert (latency["count"], latency["p95"]) == (len(known), known[-1])
        assert known[0] <= latency["p50"] <= known[-1]


def test_a_first_token_that_took_long_is_told(jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard", slow_seconds=0.000001)
    reply = server.chat("Hi")
    server.wait_until(lambda: entry(server, reply.request_id, "completed")["slow"])


def test_only_the_last_requests_are_kept(jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard", settings={"dashboard": {"requests": 2}})
    for name in "abc":
        server.chat("Hi", headers={"X-Request-ID": name})
    entry(server, "c", "completed")
    told = server.get("/dashboard/state").json
    assert [one["id"] for one in told["requests"]] == ["b", "c"]
    assert told["keeps"]["requests"] == 2


# --- The journal on its own ------------------------------------------------------------------------------------------


@pytest.fixture
def journal() -> Journal:
    return Journal(3, lambda: 7.0)


def record(kind: Any, request: str | RequestInfo, **data: Any) -> LogRecord:
    info = RequestInfo(request, "/chat/completions", "m", received=1.0) if isinstance(request, str) else request
    return LogRecord(kind, info, data)


def test_what_has_changed_since_is_told_and_no_more(journal: Journal) -> None:
    journal.record(record("received", "a", prompt_tokens=5))
    journal.record(record("received", "b", prompt_tokens=5))
    version = journal.version
    assert journal.since(version) == []
    journal.record(record("first_token", "a", seconds=0.5, cached_tokens=0))
    assert [(one.id, one.state) for one in journal.since(version)] == [("a", "answering")]
    assert [one.id for one in journal.since(0)] == ["a", "b"]


def test_a_request_that_was_forgotten_at_work_comes_back_at_its_end(journal: Journal) -> None:
    for name in "abcd":
        journal.record(record("received", name, prompt_tokens=5))
    assert [one.id for one in journal.since(0)] == ["b", "c", "d"]
    journal.record(record("cancelled", "a", completion_tokens=1, seconds=2.0))
    assert [(one.id, one.state, one.ended) for one in journal.since(0)][-1] == ("a", "cancelled", 7.0)
    journal.slow("nobody")


def test_names_that_clients_choose_are_cut(journal: Journal) -> None:
    journal.record(record("failed", RequestInfo("a", "/" + "e" * 999, "m" * 999), status=404))
    (told,) = journal.since(0)
    assert len(told.model) == len(told.endpoint) == LONGEST_NAME


@pytest.mark.parametrize("endpoint", ["/dashboard/state", "/dashboard/events"])
def test_the_pages_own_requests_are_left_out(journal: Journal, endpoint: str) -> None:
    journal.record(record("failed", RequestInfo("a", endpoint, ""), status=401))
    assert journal.since(0) == []


@pytest.mark.parametrize(
    ("tokens", "first", "expected"), [(11, 1.0, 0.2), (1, 1.0, None), (0, None, None), (11, 4.0, 0.0)]
)
def test_the_time_between_tokens_is_an_average(
    journal: Journal, tokens: int, first: float | None, expected: float | None
) -> None:
    data = {"completion_tokens": tokens, "first_token_seconds": first, "seconds": 3.0, "finish_reasons": ["stop"]}
    journal.record(record("completed", "a", **data))
    assert journal.since(0)[0].between_tokens_seconds == expected


@pytest.mark.parametrize("kind", ["backend", "fallback"])
def test_other_stations_change_nothing(journal: Journal, kind: str) -> None:
    journal.record(record(kind, "a", backend="x"))
    (told,) = journal.since(0)
    assert told.state == "waiting"
