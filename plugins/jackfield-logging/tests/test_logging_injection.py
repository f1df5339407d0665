"""Nothing that is logged can forge a line, steer a terminal, grow without end or break a reader."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jackfield.hooks import Event
from logged import line, lines, record, started

NASTY = [
    "two\nlines",
    "\r\n2026-11-22T00:00:00Z [info] forged",
    "\x1b[2J\x1b[31mred",
    "\x9b31m",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\u202eright to left",
    "\x00\x07\x08\x7f",
    "\ud800 alone",
    'quote " and \\ backslash',
    "ünïcödé 漢字 🙂",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from(NASTY),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.frozensets(st.text()),
    max_leaves=20,
)


class Mute:
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


def told(folder: Path, data: Mapping[str, Any], shape: str) -> str:
    file = folder / "log"
    file.unlink(missing_ok=True)
    with started(file=file, format=shape) as plugin:
        plugin.on_event(Event("odd\n\x1b[2Jkind", "info", "A title", data=data))
        plugin.log_record(record("something", **{str(key): value for key, value in data.items()}))
    return file.read_text("utf-8")


@given(data=st.dictionaries(st.text(), VALUES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_comes_is_one_line_of_json_each(tmp_path: Path, data: dict[str, Any]) -> None:
    text = told(tmp_path, data, "json")
    assert text.isascii() and text.count("\n") == 2
    assert [one["event"] for one in lines(tmp_path / "log")] == ["odd\n\x1b[2Jkind", "something"]
    text.encode().decode("utf-8")


@given(data=st.dictionaries(st.text(), VALUES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_comes_is_one_printable_line_on_a_console_each(tmp_path: Path, data: dict[str, Any]) -> None:
    text = told(tmp_path, data, "console")
    assert text.count("\n") == 2 and text.replace("\n", "").isprintable()


@pytest.mark.parametrize("nasty", NASTY)
def test_nasty_text_is_one_line_wherever_it_stands(tmp_path: Path, nasty: str) -> None:
    data = {nasty: nasty, "within": {nasty: [nasty]}}
    assert told(tmp_path, data, "json").count("\n") == 2
    assert told(tmp_path, data, "console").replace("\n", "", 2).isprintable()


def test_json_keeps_the_text_as_it_was(tmp_path: Path) -> None:
    for nasty in NASTY:
        told(tmp_path, {"text": nasty}, "json")
        assert lines(tmp_path / "log")[1]["text"] == nasty.replace("\ud800", "\ufffd")


def test_half_surrogates_are_no_json_for_strict_readers(tmp_path: Path) -> None:
    assert "\\ud8" not in told(tmp_path, {"text": "\ud800"}, "json")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (0.1 + 0.2, 0.3),
        pytest.param(10**5000, "a number of 16610 bits", id="a number that cannot be written"),
        (2**64 - 1, 2**64 - 1),
        (True, True),
        (b"bytes", "b'bytes'"),
        (("a", 1), ["a", 1]),
        ({3: None}, {"3": None}),
        (Mute(), "<Mute>"),
        (Path("/a/b"), "/a/b"),
    ],
)
def test_values_become_plain_json(tmp_path: Path, value: object, expected: object) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        plugin.log_record(record("backend", value=value))
    assert line(file)["value"] == expected


def test_huge_values_are_cut(tmp_path: Path) -> None:
    file = tmp_path / "log"
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"deeper": deep}
    huge: dict[str, Any] = {
        "text": "x" * 10**7,
        "list": list(range(10**5)),
        "keys": {str(n): n for n in range(10**4)},
        "deep": deep,
    }
    huge["k" * 10**6] = 1
    with started(file=file) as plugin:
        plugin.log_record(record("backend", **huge))
    told = line(file)
    assert len(file.read_text()) < 25_000
    assert told["text"].endswith("… [9991808 more characters]")
    assert (len(told["list"]), told["list"][-1]) == (201, "99800 more")
    assert (len(told["keys"]), told["keys"]["omitted"]) == (201, "9800 more")


def test_a_console_line_reads_well(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, format="console") as plugin:
        plugin.log_record(record("backend", backend="mlx", reason="x request_id=forged"))
    assert file.read_text().split() == [
        "2026-09-21T14:13:21.250Z",
        "[info",
        "]",
        "backend_chosen",
        "request_id='req_1790000000_0badcafe'",
        "backend='mlx'",
        "reason='x",
        "request_id=forged'",
    ]


def test_secrets_are_hidden_in_every_line(tmp_path: Path) -> None:
    key = "sk-" + "a1" * 24
    text = told(tmp_path, {key: 1, "deep": [{"er": f"Authorization: Bearer {key}"}]}, "json")
    assert "a1a1" not in text and json.loads(text.splitlines()[1])["[redacted:api_key]"] == 1
