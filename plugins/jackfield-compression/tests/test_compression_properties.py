"""What holds of every conversation, whatever is in it."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression_conversations import WordTokenizer, chat, compress, conversations, plugin, points, shortened, text_of
from jackfield.hooks import ChatMessage

BUDGETS = st.sampled_from([150, 400, 1000, 2500])
STRATEGIES = st.sampled_from([("extractive", "window"), ("window",), ("extractive",), ("window", "extractive")])
RELAXED = settings(deadline=None, max_examples=40)
count = WordTokenizer().count


def is_start(shorter: list[ChatMessage], longer: list[ChatMessage]) -> bool:
    return longer[: len(shorter)] == shorter


@RELAXED
@given(conversations(), BUDGETS, STRATEGIES)
def test_it_fits_or_nothing_more_can_be_left_out(
    messages: list[ChatMessage], budget: int, strategy: tuple[str, ...]
) -> None:
    found = compress(plugin(strategy=strategy), messages, budget)
    if found is None:
        return
    # The tokenizer refuses roles that do not alternate, and results without calls.
    after = count(found.messages)
    assert after < count(messages)
    assert found.report["tokens_after"] == after
    if after > budget and "window" in strategy:
        outputs = [message for message in found.messages if message["role"] == "tool"]
        assert all("left out" in message["content"].lower() or len(message["content"]) < 60 for message in outputs)
        assert sum(message["role"] == "assistant" for message in found.messages) <= 2


@RELAXED
@given(conversations(), BUDGETS, STRATEGIES)
def test_system_prompt_last_question_and_last_calls_are_kept(
    messages: list[ChatMessage], budget: int, strategy: tuple[str, ...]
) -> None:
    kept = shortened(plugin(strategy=strategy), messages, budget)
    if messages[0]["role"] == "system":
        assert kept[0] == messages[0]
    question = next(message for message in reversed(messages) if message["role"] == "user")
    assert question in kept
    if messages[-1]["role"] == "tool":
        assert kept[-1]["tool_call_id"] == messages[-1]["tool_call_id"]


@RELAXED
@given(conversations(), BUDGETS, STRATEGIES)
def test_the_same_conversation_is_always_compressed_in_the_same_way(
    messages: list[ChatMessage], budget: int, strategy: tuple[str, ...]
) -> None:
    made = plugin(strategy=strategy)
    first = shortened(made, messages, budget)
    assert shortened(made, messages, budget) == first
    assert shortened(plugin(strategy=strategy), messages, budget) == first


@RELAXED
@given(conversations(), BUDGETS, STRATEGIES)
def test_what_is_compressed_stays_as_it_is(messages: list[ChatMessage], budget: int, strategy: tuple[str, ...]) -> None:
    once = shortened(plugin(strategy=strategy), messages, budget)
    assert shortened(plugin(strategy=strategy), once, budget) == once


@RELAXED
@given(conversations(), BUDGETS, STRATEGIES, st.sampled_from([0, 1, 64]), st.booleans())
def test_later_turns_find_the_beginning_as_it_was(
    messages: list[ChatMessage], budget: int, strategy: tuple[str, ...], remember: int, restarts: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        made = plugin(Path(name), strategy=strategy, remember=remember)
        before: list[ChatMessage] = []
        for end in [*points(messages), len(messages)]:
            if count(messages[:end]) <= budget:
                continue
            found = compress(made, messages[:end], budget)
            if found is None:
                continue
            kept = list(found.messages)
            assert found.report["fresh"] or is_start(before, kept)
            before = kept
            if restarts:
                made = plugin(Path(name), strategy=strategy, remember=remember)


@RELAXED
@given(conversations(), BUDGETS, st.data())
def test_a_branch_begins_as_what_it_branches_from(
    messages: list[ChatMessage], budget: int, data: st.DataObject
) -> None:
    made, seen = plugin(), {}
    for end in [*points(messages), len(messages)]:
        seen[end] = shortened(made, messages[:end], budget)
    at = data.draw(st.sampled_from([index for index, message in enumerate(messages) if message["role"] == "user"]))
    branch = [*messages[:at], {"role": "user", "content": "Something else. " + "hm " * 30}]
    if count(branch) <= budget:
        return
    found = compress(made, branch, budget)
    assert found is not None
    assert found.messages[-1] == branch[-1]
    shared = [kept for end, kept in seen.items() if end <= at]
    if shared and not found.report["fresh"]:
        assert is_start(shared[-1], list(found.messages))


@pytest.mark.parametrize("strategy", [("window",), ("extractive", "window")])
def test_it_is_compressed_well_below_the_limit_and_then_left_alone(strategy: tuple[str, ...]) -> None:
    messages, made, fresh = chat(200), plugin(strategy=strategy), []
    for end in range(1, len(messages) + 1, 2):
        if count(messages[:end]) > 1000:
            found = compress(made, messages[:end], 1000)
            assert found is not None
            fresh.append(found.report["fresh"])
            if fresh[-1]:
                assert found.report["tokens_after"] < 600
    assert len(fresh) > 150
    assert sum(fresh) <= len(fresh) / 8


def test_reports_hold_no_text() -> None:
    found = compress(plugin(), chat(100), 500)
    assert found is not None
    assert set(found.report["strategies"]) <= {"extractive", "window", "summary", "last_resort"}
    assert "Turn" not in text_of([dict(found.report)])
