"""What is written for each station on a request's way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jackfield.hooks import Event, Identity, RequestInfo
from logged import REQUEST, line, lines, record, started

RECEIVED: dict[str, Any] = {
    "prompt_tokens": 12,
    "max_tokens": 100,
    "choices": 1,
    "messages": 2,
    "roles": {"system": 1, "user": 1},
    "tools": 0,
    "context_length": 2048,
}
JUDGED = [{"confidence": {"score": 0.75, "label": "high", "factors": {"entropy": 0.5}}}]
COMPLETED: dict[str, Any] = {
    "finish_reasons": ["stop"],
    "ended_by": ["stop"],
    "prompt_tokens": 12,
    "cached_tokens": 4,
    "completion_tokens": 30,
    "seconds": 2.5,
    "first_token_seconds": 0.5,
    "tokens_per_second": 15.0,
    "memory_before": 1000,
    "memory_after": 1200,
    "backend": "mlx",
    "confidence": JUDGED,
    "compression": None,
}
FAILED: dict[str, Any] = {
    "status": 400,
    "code": "invalid_type",
    "type": "invalid_request_error",
    "category": "request",
    "message": "Invalid type for 'n'.",
    "suggestions": ("Send an integer.",),
    "seconds": 0.01,
}


def test_every_line_begins_with_time_level_event_and_request(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        plugin.log_record(record("backend", backend="mlx", reason="the model is served here"))
    assert list(line(file).items()) == [
        ("timestamp", "2026-09-21T14:13:21.250Z"),
        ("level", "info"),
        ("event", "backend_chosen"),
        ("request_id", "req_1790000000_0badcafe"),
        ("backend", "mlx"),
        ("reason", "the model is served here"),
    ]


def test_a_received_request_is_told_with_an_analysis_of_its_context(tmp_path: Path) -> None:
    file = tmp_path / "log"
    request = replace(REQUEST, identity=Identity("ada"))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x = f(1);\ny = g(2);"}]
    with started(file=file) as plugin:
        assert plugin.transform_request({"messages": messages}, request) is None
        plugin.log_record(record("received", request, **RECEIVED))
    told = line(file)
    assert told.items() >= {**RECEIVED, "endpoint": "/chat/completions", "model": "starter", "stream": True}.items()
    assert (told["event"], told["identity"]) == ("request_received", "ada")
    assert (told["characters"], told["code_share"], told["complexity"]) == (28, 0.67, 0.15)


def test_a_request_that_was_not_looked_at_is_told_without_one(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, analysis_chars=0) as plugin:
        plugin.transform_request({"messages": [{"role": "user", "content": "x = 1;"}]}, REQUEST)
        plugin.log_record(record("received", **RECEIVED))
    assert "code_share" not in line(file)


def test_two_requests_of_one_id_keep_their_own_analysis(tmp_path: Path) -> None:
    file = tmp_path / "log"
    other = replace(REQUEST, received=REQUEST.received + 1)
    with started(file=file) as plugin:
        plugin.transform_request({"prompt": "one"}, REQUEST)
        plugin.transform_request({"prompt": "three"}, other)
        plugin.log_record(record("received", **RECEIVED))
        plugin.log_record(record("received", other, **RECEIVED))
    assert [told["characters"] for told in lines(file)] == [3, 5]


def test_requests_that_nobody_hears_of_again_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        for number in range(5000):
            plugin.transform_request({"prompt": "x"}, replace(REQUEST, id=f"req-{number}"))
        plugin.log_record(record("received", replace(REQUEST, id="req-0"), **RECEIVED))
        plugin.log_record(record("received", replace(REQUEST, id="req-4999"), **RECEIVED))
    assert ["characters" in told for told in lines(file)] == [False, True]


@pytest.mark.parametrize(
    ("kind", "data", "event", "level"),
    [
        ("fallback", {"from": "mlx", "to": "cloud", "reason": "queue_full"}, "backend_fallback", "warning"),
        ("first_token", {"seconds": 0.5, "queue_seconds": 0.1, "cached_tokens": 4}, "first_token", "info"),
        ("cancelled", {"completion_tokens": 3, "seconds": 0.7}, "request_cancelled", "info"),
        ("something_new", {"answer": 42}, "something_new", "info"),
    ],
)
def test_stations_are_told_as_they_are(tmp_path: Path, kind: str, data: dict[str, Any], event: str, level: str) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        plugin.log_record(record(kind, **data))
    told = line(file)
    assert told.items() >= {**data, "event": event, "level": level, "request_id": REQUEST.id}.items()


def test_a_completion_tells_scores_and_its_factors_at_debug_only(tmp_path: Path) -> None:
    for level in ("info", "debug"):
        with started(file=tmp_path / level, level=level) as plugin:
            plugin.log_record(record("completed", **COMPLETED))
    told = line(tmp_path / "info")
    assert told.items() >= {**COMPLETED, "confidence": [{"confidence": 0.75}], "event": "request_completed"}.items()
    completed, confidence = lines(tmp_path / "debug")
    assert completed == told
    assert (confidence["event"], confidence["level"], confidence["choices"]) == ("confidence", "debug", JUDGED)
    assert confidence["request_id"] == REQUEST.id


def test_a_completion_without_confidence_is_one_line_at_debug_too(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, level="debug") as plugin:
        plugin.log_record(record("completed", **{**COMPLETED, "confidence": [{}]}))
    assert line(file)["confidence"] == [{}]


@pytest.mark.parametrize(("status", "level"), [(400, "warning"), (429, "warning"), (500, "error"), (503, "error")])
def test_errors_have_a_category_and_suggestions(tmp_path: Path, status: int, level: str) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        plugin.log_record(record("failed", **{**FAILED, "status": status}))
    told = line(file)
    assert (told["event"], told["level"], told["status"]) == ("request_failed", level, status)
    assert (told["category"], told["suggestions"]) == ("request", ["Send an integer."])
    assert (told["endpoint"], told["message"], told["code"]) == (
        "/chat/completions",
        "Invalid type for 'n'.",
        "invalid_type",
    )
    assert "type" not in told


def test_data_cannot_replace_what_every_line_has(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        plugin.log_record(record("backend", level="debug", event="x", request_id="y", timestamp="z", exception="e"))
    told = line(file)
    assert (told["level"], told["event"], told["request_id"]) == ("info", "backend_chosen", REQUEST.id)
    assert (told["level_"], told["request_id_"], told["exception_"]) == ("debug", "y", "e")


def test_levels_below_the_wanted_one_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, level="error") as plugin:
        plugin.log_record(record("completed", **COMPLETED))
        plugin.log_record(record("failed", **FAILED))
        plugin.log_record(record("failed", **{**FAILED, "status": 500}))
    assert line(file)["status"] == 500


def test_events_are_lines_at_their_level(tmp_path: Path) -> None:
    file = tmp_path / "log"
    event = Event(
        "slow", "warning", "The first token took 9 seconds.", "starter", "req-1", {"seconds": 9.0}, 1790000000
    )
    with started(file=file) as plugin:
        plugin.on_event(event)
    assert line(file) == {
        "timestamp": "2026-09-21T14:13:20.000Z",
        "level": "warning",
        "event": "slow",
        "request_id": "req-1",
        "title": "The first token took 9 seconds.",
        "model": "starter",
        "data": {"seconds": 9.0},
    }


def test_events_that_repeat_a_record_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        plugin.on_event(Event("completed", "info", "Answered.", "starter", "req-1"))
        plugin.on_event(Event("failed", "error", "The model failed."))
    assert line(file)["title"] == "The model failed."


def test_a_time_that_is_none_becomes_now(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        plugin.on_event(Event("odd", "info", "Odd.", time=float("inf")))
    assert line(file)["timestamp"] > "2026"


def test_nothing_is_written_before_startup_and_after_shutdown(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        pass
    plugin.transform_request({"prompt": "x"}, REQUEST)
    plugin.log_record(record("received", **RECEIVED))
    plugin.on_event(Event("slow", "warning", "Slow."))
    assert lines(file) == []


def test_a_request_id_is_never_redacted(tmp_path: Path) -> None:
    file = tmp_path / "log"
    request = RequestInfo("ada@example.com", "/completions", "starter")
    with started(file=file) as plugin:
        plugin.log_record(record("cancelled", request, reason="ada@example.com left"))
    assert (line(file)["request_id"], line(file)["reason"]) == ("ada@example.com", "[redacted:email] left")
