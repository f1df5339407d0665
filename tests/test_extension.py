"""Priorities and deadlines go in, and what Jackfield has to say of an answer comes out, to those who ask."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx2
import openai
import pytest
from openai import OpenAI

from contract import validator
from jackfield.engine import request as engine
from jackfield.engine.request import CacheUse, FinishEvent, StartEvent, TokenEvent
from jackfield.errors import DeadlineExceededError, EngineError, MemoryPressureError
from jackfield.protocol import extension
from scripted_engine import Stage, staged
from serving import Server

BOTH = pytest.mark.parametrize("path", ["chat/completions", "completions"])
DONE = FinishEvent("stop", preemptions=2, prefill_seconds=1.5, decode_seconds=0.125)
START = StartEvent(0.25, CacheUse(tokens=2, from_disk=1, miss="diverged"))
TOOL = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "paint", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def theatre(tiny_model: Path) -> Iterator[Stage]:
    with staged(tiny_model) as stage:
        yield stage


@pytest.fixture
def stage(theatre: Stage) -> Stage:
    """An empty one."""
    theatre.engine.scripts.clear()
    theatre.engine.requests.clear()
    theatre.engine.state = "ready"
    return theatre


def post(stage: Stage, path: str, **fields: Any) -> httpx2.Response:
    prompt = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Say hi:"}
    return httpx2.post(f"{stage.url}/v1/{path}", json={"model": "actor", **prompt, **fields}, timeout=60)


def chunks(response: httpx2.Response) -> list[dict[str, Any]]:
    *events, last = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data:")]
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def reports(said: dict[str, Any]) -> list[dict[str, Any]]:
    validator("Extension").validate(said["jackfield"])
    return said["jackfield"]["choices"]


# ---------------------------------------------------------------------------------------- what goes in


@BOTH
def test_priority_and_deadline_reach_the_engine_for_every_choice(stage: Stage, path: str) -> None:
    stage.engine.scripts = [stage.script("a", DONE) for _ in range(3)]
    before = time.monotonic()
    assert post(stage, path, priority=-5, timeout=30, n=3, seed=7).status_code == 200
    after = time.monotonic()
    requests = stage.engine.requests
    assert [request.priority for request in requests] == [-5] * 3
    (deadline,) = {request.deadline for request in requests}
    assert deadline is not None
    assert before + 30 <= deadline <= after + 30
    assert len({request.id for request in requests}) == len({request.sampling.seed for request in requests}) == 3


@BOTH
def test_without_them_a_request_has_no_deadline_and_no_priority(stage: Stage, path: str) -> None:
    stage.engine.scripts = [stage.script("a", DONE)]
    post(stage, path)
    (request,) = stage.engine.requests
    assert (request.priority, request.deadline) == (0, None)


# ---------------------------------------------------------------------------------------- deadlines and memory


@BOTH
def test_a_deadline_before_the_first_token_is_504_and_sdks_do_not_repeat_it(stage: Stage, path: str) -> None:
    stage.engine.scripts = [[[FinishEvent("error", DeadlineExceededError())]] for _ in range(3)]
    sdk = OpenAI(base_url=f"{stage.url}/v1", api_key="any", max_retries=2)
    with sdk as client, pytest.raises(openai.InternalServerError) as caught:
        if "chat" in path:
            client.chat.completions.create(model="actor", messages=[{"role": "user", "content": "Hi"}])
        else:
            client.completions.create(model="actor", prompt="Hi")
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"
    assert caught.value.param == "timeout"
    assert len(stage.engine.requests) == 1


@BOTH
def test_in_a_stream_it_is_an_error_event_and_the_last_one(stage: Stage, path: str) -> None:
    stage.engine.scripts = [[[START], [FinishEvent("error", DeadlineExceededError())]]]
    *_, last = chunks(post(stage, path, stream=True, stream_options={"include_usage": True}, jackfield=True))
    assert last["error"]["code"] == "deadline_exceeded"


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_in_the_middle_ends_the_answer_there(stage: Stage, path: str, stream: bool) -> None:
    stage.engine.scripts = [stage.script("Once upon", FinishEvent("timeout"))]
    response = post(stage, path, stream=stream, jackfield=True)
    assert response.status_code == 200
    last = chunks(response)[-1] if stream else response.json()
    assert last["choices"][0]["finish_reason"] == "length"
    assert reports(last)[0]["ended_by"] == "timeout"


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_had_no_time_does_not_take_away_the_others(stage: Stage, path: str, stream: bool) -> None:
    late = [[FinishEvent("error", DeadlineExceededError())]]
    stage.engine.scripts = [stage.script("Once upon", DONE), late]
    response = post(stage, path, n=2, stream=stream, jackfield=True)
    last = chunks(response)[-1] if stream else response.json()
    first, second = reports(last)
    assert first["ended_by"] == "stop"
    assert (second["ended_by"], second["cache"]) == ("timeout", None)
    assert second["queue_seconds"] > 0


@BOTH
def test_a_shortage_of_memory_is_503_with_the_time_to_try_again(stage: Stage, path: str) -> None:
    stage.engine.scripts = [[[START], [FinishEvent("error", MemoryPressureError())]]]
    response = post(stage, path)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "memory_pressure"


@pytest.mark.parametrize("state", ["loading", "recovering", "stopped", "failed"])
def test_ready_says_in_which_state_the_engine_is(stage: Stage, state: str) -> None:
    stage.engine.state = state
    response = httpx2.get(f"{stage.url}/ready")
    assert response.status_code == 503
    assert f"actor is {state}" in response.json()["error"]["message"]
    validator("ErrorEnvelope").validate(response.json())


# ---------------------------------------------------------------------------------------- the extension


@BOTH
@pytest.mark.parametrize("asked", [{}, {"jackfield": False}, {"jackfield": None}], ids=str)
def test_nobody_gets_it_who_does_not_ask(stage: Stage, path: str, asked: dict[str, Any]) -> None:
    stage.engine.scripts = [stage.script("a", DONE), stage.script("a", DONE)]
    assert "jackfield" not in post(stage, path, **asked).json()
    assert not any("jackfield" in chunk for chunk in chunks(post(stage, path, stream=True, **asked)))


@BOTH
def test_a_whole_answer_carries_it(stage: Stage, path: str) -> None:
    stage.engine.scripts = [stage.script("Hello.", DONE, START)]
    said = post(stage, path, jackfield=True).json()
    (report,) = reports(said)
    explanation = report["cache"].pop("explanation")
    assert explanation.startswith("After its cached tokens")
    assert report == {
        "index": 0,
        "cache": {
            "prompt_tokens": said["usage"]["prompt_tokens"],
            "cached_tokens": 2,
            "from_disk": 1,
            "miss": "diverged",
        },
        "queue_seconds": 0.25,
        "prefill_seconds": 1.5,
        "decode_seconds": 0.125,
        "preemptions": 2,
        "ended_by": "stop",
    }
    assert said["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


@BOTH
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["bare", "usage"])
def test_the_last_chunk_of_a_stream_carries_it(stage: Stage, path: str, options: dict[str, Any]) -> None:
    stage.engine.scripts = [stage.script("Hello there.", DONE, START), stage.script("Bye.", DONE, START)]
    *others, last = chunks(post(stage, path, stream=True, n=2, jackfield=True, **options))
    assert not any("jackfield" in chunk for chunk in others)
    assert [report["index"] for report in reports(last)] == [0, 1]
    if options:
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 2
    else:
        assert last["choices"][0]["finish_reason"] == "stop"
        assert "usage" not in last


ENDS: dict[str, tuple[str, FinishEvent | None, dict[str, Any], str]] = {
    "stop": ("a b c", FinishEvent("stop"), {}, "stop"),
    "length": ("a b c", FinishEvent("length"), {}, "length"),
    "timeout": ("a b c", FinishEvent("timeout"), {}, "length"),
    "shutdown": ("a b c", FinishEvent("shutdown"), {}, "length"),
    "stop_string": ("a b c d", None, {"stop": ["c"]}, "stop"),
    "error": ("a b c", FinishEvent("error", EngineError("No.")), {"stream": True}, "length"),
    "tool_call": (CALL + " and", None, {"tools": [TOOL], "parallel_tool_calls": False}, "tool_calls"),
}


@pytest.mark.parametrize("by", ENDS)
def test_it_says_what_ended_the_answer(stage: Stage, by: extension.EndedBy) -> None:
    text, end, fields, reason = ENDS[by]
    stage.engine.scripts = [stage.script(text, end)]
    response = post(stage, "chat/completions", jackfield=True, **fields)
    said = chunks(response)[-1] if fields.get("stream") else response.json()
    (report,) = reports(said)
    assert report["ended_by"] == by
    assert said["choices"][0]["finish_reason"] == reason
    assert (report["preemptions"] is None) == (by in ("stop_string", "tool_call", "error"))
    assert min(report["prefill_seconds"], report["decode_seconds"]) >= 0


def test_all_ends_are_tried() -> None:
    assert ENDS.keys() == set(get_args(extension.EndedBy))


def test_a_stop_string_that_only_the_end_completes_counts(stage: Stage) -> None:
    *begun, _ = stage.tokenizer.encode("A fox: \N{FOX FACE}")
    stage.engine.scripts = [[[START], [TokenEvent(token) for token in begun], [FinishEvent("length")]]]
    said = post(stage, "completions", stop="\ufffd", jackfield=True).json()
    assert said["choices"][0]["text"] == "A fox: "
    assert said["choices"][0]["finish_reason"] == "stop"
    assert reports(said)[0]["ended_by"] == "stop_string"


def test_calls_that_a_model_ends_itself_are_no_cut(stage: Stage) -> None:
    stage.engine.scripts = [stage.script(CALL, DONE)]
    said = post(stage, "chat/completions", tools=[TOOL], jackfield=True).json()
    assert said["choices"][0]["finish_reason"] == "tool_calls"
    assert reports(said)[0]["ended_by"] == "stop"


def test_every_miss_is_explained_in_a_sentence_of_its_own(stage: Stage) -> None:
    misses = [None, *get_args(engine.MissReason)]
    told = []
    for miss in misses:
        stage.engine.scripts = [stage.script("a", DONE, StartEvent(0, CacheUse(miss=miss)))]
        cache = reports(post(stage, "completions", jackfield=True).json())[0]["cache"]
        assert cache["miss"] == miss
        told.append(cache["explanation"])
    assert all(sentence.endswith(".") for sentence in told)
    assert len(set(told)) == len(misses)


def test_the_log_tells_the_cache_use_in_one_line_without_the_prompt(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.engine.scripts = [stage.script("secret answer", DONE, START)]
    with caplog.at_level(logging.DEBUG, "jackfield"):
        said = post(stage, "completions", prompt="secret prompt").json()
    (line,) = [record.getMessage() for record in caplog.records if "prompt tokens cached" in record.getMessage()]
    assert said["id"] in line
    assert f"2 of {said['usage']['prompt_tokens']} prompt tokens" in line
    assert "diverged" in line
    assert "secret" not in caplog.text


# ---------------------------------------------------------------------------------------- a real engine


@pytest.fixture(scope="module")
def client(tiny_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=tiny_server.api, api_key="any", max_retries=0) as client:
        yield client


EXTRA = {"jackfield": True, "priority": -5, "timeout": 30}
LONG = "The quick brown fox jumps over the lazy dog. " * 20


def test_the_official_sdk_takes_it_from_both_endpoints(client: OpenAI, tiny_server: Server) -> None:
    chat: Any = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4}
    text: Any = {"prompt": LONG, "max_tokens": 4}
    for create, fields in ((client.chat.completions.create, chat), (client.completions.create, text)):
        whole: Any = create(model=tiny_server.model, extra_body=EXTRA, **fields)
        (report,) = reports(whole.model_extra)
        assert report["cache"]["prompt_tokens"] == whole.usage.prompt_tokens
        for options in ({}, {"stream_options": {"include_usage": True}}):
            *others, last = create(model=tiny_server.model, extra_body=EXTRA, stream=True, **options, **fields)
            assert not any("jackfield" in chunk.model_extra for chunk in others)
            (report,) = reports(last.model_extra)
            assert report["cache"]["cached_tokens"] > 0, "the prompt has been seen before"
            assert report["cache"]["miss"] is None
            assert report["prefill_seconds"] > 0


def test_a_prompt_that_goes_on_differently_is_told(client: OpenAI, tiny_server: Server) -> None:
    found = []
    for end in ("one", "another " * 40):
        prompt = "Sphinx of black quartz, judge my vow. " * 20 + end
        said = client.completions.create(model=tiny_server.model, prompt=prompt, max_tokens=1, extra_body=EXTRA)
        found.append(reports(said.model_extra or {})[0]["cache"])
    assert [cache["miss"] for cache in found] == ["new", "diverged"]
    assert 0 < found[1]["cached_tokens"] < found[1]["prompt_tokens"]


def test_a_deadline_that_cannot_be_kept_is_504(client: OpenAI, tiny_server: Server) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=tiny_server.model, prompt=LONG, extra_body={"timeout": 1e-9})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    assert caught.value.response.headers["x-should-retry"] == "false"
