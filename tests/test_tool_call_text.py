"""Tool calls in text: any cut of the text gives the same calls and the same remaining text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jackfield.text.tool_calls import HermesCallParser, JsonCallParser, ToolCallText

NAMES = frozenset({"get_weather", "run"})
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
PARIS = ToolCallText("get_weather", '{"city": "Paris"}')

RECORDED = {
    "one": (CALL, "", [PARIS]),
    "text before": ("Let me look.\n" + CALL, "Let me look.\n", [PARIS]),
    "two": (CALL + "\n" + CALL, "\n", [PARIS, PARIS]),
    "unclosed": (CALL.removesuffix("</tool_call>"), "", [PARIS]),
    "unknown tool": (CALL.replace("get_weather", "format_disk"), CALL.replace("get_weather", "format_disk"), []),
    "not JSON": ("<tool_call>sunny</tool_call>", "<tool_call>sunny</tool_call>", []),
    "arguments no object": (
        '<tool_call>{"name": "run", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "run", "arguments": "x"}</tool_call>',
        [],
    ),
    "name no string": ('<tool_call>{"name": {}}</tool_call>', '<tool_call>{"name": {}}</tool_call>', []),
    "only the beginning of a tag": ("a <tool_ca", "a <tool_ca", []),
    "no call": ("1 < 2 and <b>", "1 < 2 and <b>", []),
}


def separate(pieces: list[str]) -> tuple[str, list[ToolCallText]]:
    parser = HermesCallParser(NAMES)
    found = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    text = "".join(part for part in found if isinstance(part, str))
    return text, [part for part in found if isinstance(part, ToolCallText)]


@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
def test_every_place_to_cut_gives_the_same(recorded):
    text, rest, calls = recorded
    for at in range(len(text) + 1):
        assert separate([text[:at], text[at:]]) == (rest, calls)
    assert separate(list(text)) == (rest, calls)


@given(st.text(max_size=60), st.text(max_size=20))
def test_text_that_is_no_call_comes_through_unchanged(before, after):
    text = before + "<tool_call>" + after
    assert "".join(separate([text])[0]) == text or separate([text])[1]


def test_an_answer_held_to_json_is_the_call():
    parser = JsonCallParser(NAMES)
    assert parser.push('{"name": "run", "argu') == []
    assert parser.push('ments": {"a": 1}}') == []
    (call,) = parser.finish()
    assert isinstance(call, ToolCallText)
    assert (call.name, json.loads(call.arguments)) == ("run", {"a": 1})


def test_a_call_that_was_cut_off_is_given_as_text():
    parser = JsonCallParser(NAMES)
    parser.push('{"name": "run"')
    assert parser.finish() == ['{"name": "run"']


def test_nesting_without_end_is_text():
    text = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    assert separate([text]) == (text, [])
