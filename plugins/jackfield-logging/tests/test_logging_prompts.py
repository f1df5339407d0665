"""Prompts are logged when that is set, and then without secrets."""

from pathlib import Path
from typing import Any

import pytest

from logged import REQUEST, line, lines, record, started

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "I am ada@example.com."}, {"type": "image_url"}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"password": "hunter2"}'}}]},
]


def prompt_of(file: Path, body: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    with started(file=file, **settings) as plugin:
        plugin.transform_request(body, REQUEST)
        plugin.log_record(record("received", prompt_tokens=9))
    return lines(file)


def test_prompts_are_private(tmp_path: Path) -> None:
    prompt_of(tmp_path / "log", {"messages": MESSAGES}, level="debug")
    assert line(tmp_path / "log")["event"] == "request_received"
    assert "brief" not in (tmp_path / "log").read_text()


def test_prompts_are_logged_redacted_when_that_is_set(tmp_path: Path) -> None:
    reminder, received, prompt = prompt_of(tmp_path / "log", {"messages": MESSAGES}, log_prompts=True)
    assert (reminder["event"], reminder["level"]) == ("prompts_are_logged", "warning")
    assert (received["event"], prompt["event"]) == ("request_received", "prompt")
    assert (prompt["request_id"], prompt["omitted"]) == (REQUEST.id, 0)
    assert prompt["passages"] == [
        {"role": "system", "text": "Be brief."},
        {"role": "user", "text": "I am [redacted:email]."},
        {"role": "assistant", "text": '{"password": "[redacted:password]"}'},
    ]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"prompt": "one"}, ["one"]),
        ({"prompt": ["one", "two"]}, ["one", "two"]),
        ({"prompt": [1, 2, 3]}, []),
        ({"prompt": [[1, 2], [3]], "suffix": "end"}, ["end"]),
        (
            {"input_prefix": "a = ", "input_suffix": "b", "input_extra": [{"filename": "x.py", "text": "c"}]},
            ["c", "a = ", "b"],
        ),
        ({"prompt": None, "messages": [None, "loose", {"content": None}, {"content": {"deep": "x"}}]}, ["loose"]),
    ],
)
def test_prompts_of_all_shapes_are_found(tmp_path: Path, body: dict[str, Any], shown: list[str]) -> None:
    *_, last = prompt_of(tmp_path / "log", body, log_prompts=True)
    assert [passage["text"] for passage in last["passages"]] == shown


def test_long_prompts_are_shown_from_their_newest_end(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": letter * 10} for letter in "abc"]
    *_, last = prompt_of(tmp_path / "log", {"messages": messages}, log_prompts=True, prompt_chars=15)
    assert [passage["text"] for passage in last["passages"]] == ["bbbbb… [5 more characters]", "c" * 10]
    assert last["omitted"] == 1


def test_a_prompt_is_not_cut_a_second_time(tmp_path: Path) -> None:
    *_, last = prompt_of(tmp_path / "log", {"prompt": "x" * 50_000}, log_prompts=True, prompt_chars=40_000)
    assert last["passages"][0]["text"] == "x" * 40_000 + "… [10000 more characters]"


def test_a_prompt_of_a_hundred_thousand_messages_makes_a_short_line(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}] * 100_000
    *_, last = prompt_of(tmp_path / "log", {"messages": messages}, log_prompts=True)
    assert (len(last["passages"]), last["omitted"]) == (100, 99_900)


def test_deep_nesting_is_left_alone(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    *_, last = prompt_of(tmp_path / "log", {"prompt": deep}, log_prompts=True)
    assert last["passages"] == []


def test_a_refused_request_shows_its_prompt_too(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, log_prompts=True) as plugin:
        plugin.transform_request({"prompt": "Hello"}, REQUEST)
        plugin.log_record(record("failed", status=400, type="invalid_request_error", suggestions=()))
    assert [told["event"] for told in lines(file)] == ["prompts_are_logged", "request_failed", "prompt"]
