"""The parser on its own, at every cut, and in a server that is set to use it."""

import json

import pytest

from jackfield.hooks import Piece, ToolCallText
from jackfield.testing import StartServer
from jackfield_tool_parser import FunctoolsParser

NAMES = frozenset({"get_weather", "get_time"})
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo [centre]"}}
TIME = {"name": "get_time", "arguments": {}}
OSLO_CALL = ToolCallText("get_weather", '{"city": "Oslo [centre]"}')
TIME_CALL = ToolCallText("get_time", "{}")


def written(*calls: object) -> str:
    return "functools" + json.dumps(calls)


EXAMPLES: list[tuple[str, list[Piece]]] = [
    ("No call at all.", ["No call at all."]),
    (written(OSLO), [OSLO_CALL]),
    ("Let me see. " + written(OSLO, TIME) + " Done.", ["Let me see. ", OSLO_CALL, TIME_CALL, " Done."]),
    (written(OSLO) + written(TIME), [OSLO_CALL, TIME_CALL]),
    ('functools[{"name": "get_time", "parameters": {}}]', [TIME_CALL]),
    ("import functools; functools.cache", ["import functools; functools.cache"]),
    (written({"name": "rm", "arguments": {}}), [written({"name": "rm", "arguments": {}})]),
    (written(), [written()]),
    ("functools[1, 2]", ["functools[1, 2]"]),
    ('functools[{"name": "get_weather", "argu', ['functools[{"name": "get_weather", "argu']),
    ("functools[not json] and on", ["functools[not json] and on"]),
    ("it ends in func", ["it ends in func"]),
]


def parse(*texts: str) -> list[Piece]:
    """All pieces, with neighbouring text put together."""
    parser = FunctoolsParser(NAMES)
    joined: list[Piece] = []
    for piece in [piece for text in texts for piece in parser.push(text)] + parser.finish():
        if joined and isinstance(piece, str) and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


@pytest.mark.parametrize(("text", "pieces"), EXAMPLES)
def test_it_finds_calls_and_leaves_text(text: str, pieces: list[Piece]) -> None:
    assert parse(text) == pieces


@pytest.mark.parametrize(("text", "pieces"), EXAMPLES)
def test_it_does_not_matter_where_the_text_is_cut(text: str, pieces: list[Piece]) -> None:
    assert parse(*text) == pieces
    for cut in range(len(text)):
        assert parse(text[:cut], text[cut:]) == pieces


def test_text_is_held_back_only_while_it_may_begin_a_call() -> None:
    parser = FunctoolsParser(NAMES)
    assert parser.push("Use func") == ["Use "]
    assert parser.push("y") == ["funcy"]


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in sorted(NAMES)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_set_to_it_answers_with_calls(jackfield_server: StartServer, stream: bool) -> None:
    server = jackfield_server("tool-parser", tool_parser="functools")
    server.says("Let me see. " + written(OSLO, TIME))
    reply = server.chat("How is the weather?", tools=TOOLS, stream=stream)
    assert reply.content == "Let me see. "
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in reply.tool_calls] == [
        ("get_weather", OSLO_CALL.arguments),
        ("get_time", "{}"),
    ]
