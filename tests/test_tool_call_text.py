"""Tool calls in text: any cut of the text gives the same calls and the same remaining text.

The recorded outputs are what models of each family write, by their templates and by what their users report.
"""

import json
import re
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jackfield.text.pieces import CallEnd, CallStart, Piece, in_parts, message
from jackfield.text.tool_calls import ToolCallParser
from jackfield.tools.formats import NAMES, named
from jackfield.tools.offered import Tool, Tools

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"enum": ["metric", "imperial"]}},
    "required": ["city"],
}
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
INDENTED = '{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Paris"\n  }\n}'
TAGGED = f"<tool_call>\n{CALL}\n</tool_call>"
ROME = CALL.replace("Paris", "Rome")
FUNCTION = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>"
WRAPPED = f"<tool_call>\n{FUNCTION}\n</tool_call>"
PARIS = ("get_weather", {"city": "Paris"})
IN_ROME = ("get_weather", {"city": "Rome"})
NOW = ("now", {})


@dataclass(frozen=True)
class Recorded:
    written: str
    text: str
    calls: tuple[tuple[str, dict], ...] = ()
    repaired: bool = False
    family: str = "hermes"


def none(written: str, family: str = "hermes") -> Recorded:
    return Recorded(written, written, family=family)


HERMES = {
    "one": Recorded(TAGGED, "", (PARIS,)),
    "without line breaks": Recorded(f"<tool_call>{CALL}</tool_call>", "", (PARIS,)),
    "text before": Recorded(f"Let me look.\n{TAGGED}", "Let me look.", (PARIS,)),
    "text after": Recorded(f"{TAGGED}\nDone.", "\nDone.", (PARIS,)),
    "several in a row": Recorded(f"{TAGGED}\n<tool_call>\n{ROME}\n</tool_call>", "", (PARIS, IN_ROME)),
    "several in one tag": Recorded(f"<tool_call>\n{CALL}\n{ROME}\n</tool_call>", "", (PARIS, IN_ROME)),
    "a list in the tag": Recorded(f"<tool_call>[{CALL}]</tool_call>", "", (PARIS,), repaired=True),
    "unclosed": Recorded(TAGGED.removesuffix("</tool_call>"), "", (PARIS,)),
    "half closed": Recorded(TAGGED.removesuffix("call>"), "", (PARIS,)),
    "no arguments": Recorded('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "", (NOW,)),
    "arguments left out": Recorded('<tool_call>\n{"name": "now"}\n</tool_call>', "", (NOW,)),
    "arguments first": Recorded(
        '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>', "", (PARIS,)
    ),
    "arguments as text": Recorded(
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', "", (PARIS,)
    ),
    "more keys": Recorded(
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}, "id": 1}</tool_call>', "", (PARIS,)
    ),
    "brackets and quotes in strings": Recorded(
        '<tool_call>{"name": "get_weather", "arguments": {"city": "a\\"}]<b>\\\\"}}</tool_call>',
        "",
        (("get_weather", {"city": 'a"}]<b>\\'}),),
    ),
    "unknown tool": none(TAGGED.replace("get_weather", "format_disk")),
    "no JSON": none("<tool_call>sunny</tool_call>"),
    "arguments are no object": none('<tool_call>{"name": "now", "arguments": "x"}</tool_call>'),
    "name is no string": none('<tool_call>{"name": {}}</tool_call>'),
    "the beginning of a tag": none("a <tool_ca"),
    "no call": none("1 < 2 and <b>"),
    "blanks": none("\n\n a\n\nb \n"),
    "only blanks": none(" \n "),
}
CODER = {
    "fenced": Recorded(f"```json\n{CALL}\n```", "", (PARIS,), repaired=True),
    "fenced, indented": Recorded(f"```json\n{INDENTED}\n```", "", (PARIS,), repaired=True),
    "fenced, with text": Recorded(f"Sure:\n\n```json\n{CALL}\n```\n\nDone.", "Sure:\n\nDone.", (PARIS,), repaired=True),
    "fenced without a language": Recorded(f"```\n{CALL}\n```", "", (PARIS,), repaired=True),
    "fenced, several": Recorded(f"```json\n{CALL}\n{ROME}\n```", "", (PARIS, IN_ROME), repaired=True),
    "fenced list": Recorded(f"```json\n[\n{CALL},\n{ROME}\n]\n```", "", (PARIS, IN_ROME), repaired=True),
    "bare": Recorded(CALL, "", (PARIS,), repaired=True),
    "bare, several": Recorded(f"{CALL}\n{ROME}", "", (PARIS, IN_ROME), repaired=True),
    "bare list": Recorded(f"[{CALL}]", "", (PARIS,), repaired=True),
    "bare after text": Recorded(f"I will look.\n{CALL}", "I will look.", (PARIS,), repaired=True),
    "as OpenAI has it": Recorded(f'{{"type": "function", "function": {CALL}}}', "", (PARIS,), repaired=True),
    "tools": Recorded(f"<tools>\n{CALL}\n</tools>", "", (PARIS,), repaired=True),
    "tools, a list": Recorded(f"<tools>[{CALL}]</tools>", "", (PARIS,), repaired=True),
    "JSON that is no call": none('{"name": "Ada", "age": 36}'),
    "JSON that names a tool": none('{"name": "get_weather", "description": "how it is outside"}'),
    "a list of numbers": none("[1, 2, 3]"),
    "JSON in a sentence": none(f"Write {CALL} to call it."),
    "code": none('```python\nprint({"name": 1})\n```'),
    "a fenced object": none('```json\n{"a": {"b": [1, 2]}}\n```'),
    "a block of code": none("```c\nint main() {\n  return 0;\n}\n```"),
}
FUNCTIONS = {
    "its own way": Recorded(WRAPPED, "", (PARIS,), family="coder"),
    "without the wrapper": Recorded(FUNCTION, "", (PARIS,), repaired=True, family="coder"),
    "the wrapper's end alone": Recorded(f"{FUNCTION}\n</tool_call>", "", (PARIS,), repaired=True, family="coder"),
    "several, text before": Recorded(
        f"I look.\n\n{WRAPPED}\n{WRAPPED.replace('Paris', 'Rome')}", "I look.", (PARIS, IN_ROME), family="coder"
    ),
    "no parameters": Recorded("<tool_call>\n<function=now>\n</function>\n</tool_call>", "", (NOW,), family="coder"),
    "numbers": Recorded(
        WRAPPED.replace("</function>", "<parameter=days>\n3\n</parameter>\n</function>"),
        "",
        (("get_weather", {"city": "Paris", "days": 3}),),
        family="coder",
    ),
    "several lines": Recorded(
        WRAPPED.replace("Paris", 'a\n "b"\n</param\n'),
        "",
        (("get_weather", {"city": 'a\n "b"\n</param\n'}),),
        family="coder",
    ),
    "an empty string": Recorded(WRAPPED.replace("Paris", ""), "", (("get_weather", {"city": ""}),), family="coder"),
    "in Hermes' way": Recorded(TAGGED, "", (PARIS,), repaired=True, family="coder"),
    "unknown function": none(WRAPPED.replace("get_weather", "format_disk"), "coder"),
    "from a Hermes model": Recorded(WRAPPED, "", (PARIS,), repaired=True),
}
OTHERS = {
    "Mistral": Recorded(f"[TOOL_CALLS] [{CALL}]", "", (PARIS,), family="mistral"),
    "Mistral, several": Recorded(f"[TOOL_CALLS][{CALL}, {ROME}]", "", (PARIS, IN_ROME), family="mistral"),
    "Mistral, named": Recorded('[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "", (PARIS,), family="mistral"),
    "Mistral, several named": Recorded(
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}', "", (PARIS, NOW), family="mistral"
    ),
    "Mistral, with an id": Recorded(
        '[TOOL_CALLS]get_weather[CALL_ID]abc123DEF[ARGS]{"city": "Paris"}', "", (PARIS,), family="mistral"
    ),
    "Mistral, unknown": none("[TOOL_CALLS]format_disk[ARGS]{}", "mistral"),
    "Llama": Recorded('{"name": "get_weather", "parameters": {"city": "Paris"}}', "", (PARIS,), family="llama"),
    "Llama, tagged": Recorded(
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}',
        "",
        (PARIS, NOW),
        family="llama",
    ),
    "Llama, a function": Recorded(
        '<function=get_weather>{"city": "Paris"}</function>', "", (PARIS,), repaired=True, family="llama"
    ),
    "pythonic": Recorded(
        '<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>', "", (PARIS,), family="pythonic"
    ),
    "pythonic, several": Recorded(
        'So:\n<|tool_call_start|>[get_weather(city="Paris"), now()]<|tool_call_end|>',
        "So:",
        (PARIS, NOW),
        family="pythonic",
    ),
    "GLM": Recorded(
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        "",
        (PARIS,),
        family="glm47",
    ),
    "MiniMax": Recorded(
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        "",
        (PARIS,),
        family="minimax_m2",
    ),
    "of no family": none("<tool_call>get_weather</tool_call>", "glm47"),
}
RECORDED = HERMES | CODER | FUNCTIONS | OTHERS
MISFITS = {
    "a wrong type": TAGGED.replace('"Paris"', "5"),
    "one missing": '<tool_call>{"name": "get_weather", "arguments": {"days": 1}}</tool_call>',
    "fenced": f"```json\n{CALL.replace('Paris', '5').replace(chr(34) + '5' + chr(34), '5')}\n```",
    "no such choice": TAGGED.replace("}}", ', "units": "furlongs"}}'),
    "a function": "<tool_call>\n<function=get_weather>\n</function>\n</tool_call>",
}


def tools(*, enforced: bool) -> Tools:
    return Tools([Tool("get_weather", WEATHER, enforced), Tool("now", {"type": "object", "properties": {}}, enforced)])


def parser_of(family: str, *, enforced: bool) -> ToolCallParser:
    return named("qwen3_coder" if family == "coder" else family).parser(tools(enforced=enforced))


def pieces_of(parts: list[str], family: str, *, enforced: bool) -> list[Piece]:
    parser = parser_of(family, enforced=enforced)
    return [piece for part in parts for piece in parser.push(part)] + parser.finish()


def said(parts: list[str], family: str, *, enforced: bool) -> tuple[str, list[tuple[str, dict]]]:
    whole = message(pieces_of(parts, family, enforced=enforced))
    return whole.text, [(call.name, json.loads(call.arguments)) for call in whole.calls]


@pytest.mark.parametrize("enforced", [True, False], ids=["enforced", "free"])
@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
def test_every_place_to_cut_gives_the_same(recorded: Recorded, enforced: bool) -> None:
    text, expected = recorded.written, (recorded.text, list(recorded.calls))
    for at in range(len(text) + 1):
        assert said([text[:at], text[at:]], recorded.family, enforced=enforced) == expected
    assert said(list(text), recorded.family, enforced=enforced) == expected


@given(st.data())
def test_any_cuts_give_the_same(data: st.DataObject) -> None:
    recorded = data.draw(st.sampled_from(list(RECORDED.values())))
    enforced = data.draw(st.booleans())
    inner = st.integers(0, len(recorded.written))
    places = sorted(data.draw(st.lists(inner, max_size=8)))
    parts = [recorded.written[a:b] for a, b in zip([0, *places], [*places, len(recorded.written)], strict=True)]
    assert said(parts, recorded.family, enforced=enforced) == (recorded.text, list(recorded.calls))


WRITTEN = [recorded.written for recorded in RECORDED.values()]
SCRAPS = sorted({scrap for text in WRITTEN for scrap in re.findall(r"<[^<>\s]*>|\s+|\w+|.", text)})


@settings(deadline=None)
@given(st.data())
def test_any_cuts_of_scraps_give_the_same(data: st.DataObject) -> None:
    """What a model might write that has lost its way: pieces of calls of all families, whole calls among them."""
    family, enforced = data.draw(st.sampled_from(NAMES)), data.draw(st.booleans())
    text = "".join(data.draw(st.lists(st.sampled_from(SCRAPS) | st.sampled_from(WRITTEN), max_size=20)))
    at = data.draw(st.integers(0, len(text)))
    whole = in_parts(pieces_of([text], family, enforced=enforced))
    assert in_parts(pieces_of([text[:at], text[at:]], family, enforced=enforced)) == whole
    assert in_parts(pieces_of(list(text), family, enforced=enforced)) == whole


@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
def test_what_a_model_should_have_written_otherwise_is_known(recorded: Recorded) -> None:
    starts = [p for p in pieces_of([recorded.written], recorded.family, enforced=True) if isinstance(p, CallStart)]
    assert [start.repaired for start in starts] == [recorded.repaired] * len(recorded.calls)


@pytest.mark.parametrize("written", MISFITS.values(), ids=MISFITS)
def test_arguments_that_do_not_fit_are_text_unchanged(written: str) -> None:
    for at in range(len(written) + 1):
        assert said([written[:at], written[at:]], "hermes", enforced=False) == (written, [])


@pytest.mark.parametrize(
    ("family", "written"), [("hermes", TAGGED), ("hermes", f"```json\n{INDENTED}\n```"), ("coder", WRAPPED)]
)
def test_enforced_arguments_go_out_as_they_come(family: str, written: str) -> None:
    parser = parser_of(family, enforced=True)
    cut = written.index("ris")
    before = message(parser.push(written[:cut]))
    (call,) = before.calls
    assert call.name == "get_weather"
    assert call.arguments.endswith('"Pa')
    after = parser.push(written[cut:]) + parser.finish()
    assert CallEnd() in after
    assert not any(isinstance(piece, CallStart) for piece in after)


@pytest.mark.parametrize("family", ["hermes", "coder", "mistral", "llama", "pythonic"])
@given(st.text(alphabet=st.sampled_from('<>{}[]`"\n :,=/ab') | st.characters(), max_size=80))
def test_text_that_is_no_call_comes_through_unchanged(family: str, text: str) -> None:
    assert said([text], family, enforced=True) == (text, [])
    assert said(list(text), family, enforced=True) == (text, [])


@given(st.text(alphabet='<tool_call>/{}"\nname:garumets_wh,[]` ', max_size=60), st.integers(0, 3))
def test_what_looks_like_the_beginning_of_a_call_is_not_lost(noise: str, times: int) -> None:
    text = ("<tool_call>\n" + noise) * times
    found, calls = said(list(text), "hermes", enforced=False)
    assert found == text or calls


def test_nesting_without_end_is_text() -> None:
    text = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    assert said([text], "hermes", enforced=False) == (text, [])
    deep = "<tool_call>" + '{"a":' * 50_000 + "</tool_call>"
    assert said([deep], "hermes", enforced=False) == (deep, [])


def test_a_pattern_of_the_clients_cannot_keep_the_server_busy() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(.*)*(.*)*(.*)*(.*)*[^a]$"}}}
    assert Tool("slow", schema).fits({"a": "a" * 5000})
    assert not Tool("quick", WEATHER | {"patternProperties": {"^x": {"type": "integer"}}}).fits(
        {"city": "a", "x1": "b"}
    )


def test_long_arguments_are_read_once() -> None:
    """Reading all of them again at every token would take hours."""
    arguments = json.dumps({"city": "Paris " * 20_000})
    text = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    parts = [text[at : at + 4] for at in range(0, len(text), 4)]
    assert said(parts, "hermes", enforced=False) == ("", [("get_weather", json.loads(arguments))])


def test_a_long_line_is_still_one_line() -> None:
    line = "a, " * 5000
    assert said([*line, CALL], "hermes", enforced=True) == (line + CALL, [])
    assert said([*line, "\n", CALL], "hermes", enforced=True) == (line.rstrip(), [PARIS])
