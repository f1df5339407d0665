"""Pieces of an answer become the items of a response, told of in OpenAI's events and their order."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from contract import validator
from jackfield.api.responses.output import Numbered, Output
from jackfield.choice import AnswerFinish, Delta
from jackfield.engine.request import TokenEvent
from jackfield.protocol.logprobs import TokenLogprob
from jackfield.protocol.responses.items import unsealed
from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Piece, Thought

TEXT = ["response.output_item.added", "response.content_part.added", "response.output_text.delta"]
TEXT_DONE = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
CALL = ["response.output_item.added", "response.function_call_arguments.delta"]
CALL_DONE = ["response.function_call_arguments.done", "response.output_item.done"]


def played(
    *deltas: Sequence[Piece] | Delta, finish: AnswerFinish = "stop", **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of an answer and its items, as they are sent."""
    output = Output(Numbered(), lambda name: ("shelf", name) if name == "fetch" else (None, name), **options)
    parts = [one if isinstance(one, Delta) else Delta(0, tuple(one)) for one in deltas]
    events = [
        json.loads(event.to_json()) for part in [*parts, Delta(0, finish_reason=finish)] for event in output.take(part)
    ]
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
    items = [json.loads(item.to_json()) for item in output.items]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == items
    return events, items


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_text() -> None:
    events, (item,) = played(["Hel"], ["lo."])
    assert types(events) == [*TEXT, "response.output_text.delta", *TEXT_DONE]
    added, part, first, second, text, part_done, _ = events
    assert added["item"] == {
        "id": item["id"],
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert [first["delta"], second["delta"], text["text"]] == ["Hel", "lo.", "Hello."]
    assert item["content"] == [part_done["part"]] == [{**part["part"], "text": "Hello."}]
    assert item["status"] == "completed"
    assert {event["item_id"] for event in events[1:-1]} == {item["id"]}
    assert {(event["output_index"], event.get("content_index", 0)) for event in events} == {(0, 0)}


def test_calls_as_they_are_written() -> None:
    events, items = played(
        [CallStart("look", id="call_1")],
        [CallArguments('{"a"')],
        [CallArguments(": 1}"), CallEnd()],
        [CallStart("fetch", id="call_2"), CallArguments("{}"), CallEnd()],
        finish="tool_calls",
    )
    assert types(events) == [*CALL, "response.function_call_arguments.delta", *CALL_DONE, *CALL, *CALL_DONE]
    assert events[0]["item"] == {
        "id": items[0]["id"],
        "type": "function_call",
        "status": "in_progress",
        "call_id": "call_1",
        "name": "look",
        "arguments": "",
    }
    assert items[0] == {**events[0]["item"], "status": "completed", "arguments": '{"a": 1}'}
    assert (items[1]["namespace"], items[1]["name"], items[1]["call_id"]) == ("shelf", "fetch", "call_2")
    assert [event["output_index"] for event in events] == [0] * 5 + [1] * 4
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in done] == [("look", '{"a": 1}'), ("fetch", "{}")]


def test_thoughts_then_text_then_a_call() -> None:
    pieces = [Thought("Let me "), Thought("see."), "It is", CallStart("look"), CallArguments("{}"), CallEnd()]
    events, items = played(*([piece] for piece in pieces))
    assert types(events) == [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        *TEXT,
        *TEXT_DONE,
        *CALL,
        *CALL_DONE,
    ]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert items[0]["summary"] == []
    assert "encrypted_content" not in items[0]
    assert [event["output_index"] for event in events] == [0] * 7 + [1] * 6 + [2] * 4


def test_thoughts_as_a_summary_and_sealed() -> None:
    events, (item, _) = played([Thought("Let me "), Thought("see.")], ["Yes."], summarized=True, seal=True)
    assert types(events)[:7] == [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
    ]
    assert {event["summary_index"] for event in events[1:6]} == {0}
    assert item["summary"] == [{"type": "summary_text", "text": "Let me see."}]
    assert "content" not in item
    assert item["encrypted_content"] != "Let me see."
    assert unsealed(item["encrypted_content"]) == "Let me see."


@pytest.mark.parametrize("content", ["gAAAAAB", "jackfield1.%%%", "jackfield1./w==", ""])
def test_what_others_have_sealed_stays_so(content: str) -> None:
    assert unsealed(content) == ""


def test_blanks_around_calls_are_no_messages() -> None:
    call = [CallStart("look"), CallArguments("{}"), CallEnd()]
    _, items = played(["\n"], call, ["\n", " "], call, ["\n"])
    assert [item["type"] for item in items] == ["function_call", "function_call"]


def test_blanks_before_text_belong_to_it() -> None:
    events, (item,) = played(["\n"], [" "], ["Hi"], [" "], ["there"])
    assert [event["delta"] for event in events if "delta" in event] == ["\n Hi", " ", "there"]
    assert item["content"][0]["text"] == "\n Hi there"


@pytest.mark.parametrize("said", ["", "\n\n"])
def test_an_answer_without_text_is_an_empty_message(said: str) -> None:
    events, (item,) = played([said])
    assert types(events) == [*(TEXT if said else TEXT[:2]), *TEXT_DONE]
    assert item["content"][0]["text"] == said


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        (["Hel"], ["incomplete"]),
        ([Thought("Hm")], ["incomplete"]),
        (["Look:", CallStart("look"), CallArguments('{"a"')], ["completed", "incomplete"]),
        ([CallStart("look"), CallArguments("{}"), CallEnd()], ["completed"]),
        ([], ["incomplete"]),
    ],
    ids=["text", "thoughts", "a call", "after a call", "nothing"],
)
def test_what_is_cut_off_is_incomplete(pieces: list[Piece], statuses: list[str]) -> None:
    events, items = played(pieces, finish="length")
    assert [item["status"] for item in items] == statuses
    assert events[-1]["type"] == "response.output_item.done"


def test_log_probabilities_go_with_their_text() -> None:
    def logprob(token: TokenEvent) -> TokenLogprob:
        return TokenLogprob(token=chr(token.id), logprob=-0.5, bytes=[token.id], top_logprobs=[])

    def delta(tokens: str, *pieces: Piece) -> Delta:
        return Delta(0, pieces, tuple(TokenEvent(ord(token)) for token in tokens))

    events, items = played(
        delta("T"),
        delta("h", Thought("h")),
        delta("m", Thought("m")),
        delta("/"),
        delta("a", "a"),
        delta("<"),
        delta("b", "<b"),
        delta("{"),
        delta("}", CallStart("look"), CallArguments("{}"), CallEnd()),
        delta("["),
        delta("]", CallStart("fetch"), CallEnd()),
        delta("\n"),
        delta("c", "c"),
        logprob=logprob,
    )
    texts = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [(event["delta"], "".join(one["token"] for one in event["logprobs"])) for event in texts] == [
        ("a", "a"),
        ("<b", "<b"),
        ("c", "\nc"),
    ]
    parts = [item["content"][0] for item in items if item["type"] == "message"]
    assert ["".join(one["token"] for one in part["logprobs"]) for part in parts] == ["a<b", "\nc"]
    done = [event for event in events if event["type"] == "response.output_text.done"]
    assert [event["logprobs"] for event in done] == [part["logprobs"] for part in parts]


def test_without_being_asked_for_there_are_none() -> None:
    events, _ = played(Delta(0, ("a",), (TokenEvent(97),)))
    assert all(event.get("logprobs", []) == [] for event in events)


def test_all_events_are_in_the_document() -> None:
    raw, _ = played([Thought("Hm"), "Yes", CallStart("look"), CallArguments("{}"), CallEnd()], seal=True)
    summary, _ = played([Thought("Hm"), "Yes"], summarized=True)
    names = {
        "output_item": "OutputItemEvent",
        "content_part": "ContentPartEvent",
        "output_text.delta": "OutputTextDelta",
        "output_text.done": "OutputTextDone",
        "reasoning_text.delta": "ReasoningTextDelta",
        "reasoning_text.done": "ReasoningTextDone",
        "reasoning_summary_part": "SummaryPartEvent",
        "reasoning_summary_text.delta": "SummaryTextDelta",
        "reasoning_summary_text.done": "SummaryTextDone",
        "function_call_arguments.delta": "ArgumentsDelta",
        "function_call_arguments.done": "ArgumentsDone",
    }
    seen = set()
    for event in raw + summary:
        kind = event["type"].removeprefix("response.")
        name = names.get(kind) or names[kind.rpartition(".")[0]]
        validator(name).validate(event)
        seen.add(name)
    assert seen == set(names.values())
