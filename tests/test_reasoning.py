"""What a model thinks goes out as such, in both names that clients know, and is counted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from jackfield.engine.request import FinishEvent
from jackfield.protocol.responses.items import unsealed
from jackfield.text.pieces import message
from jackfield.text.reasoning import ThinkingParser, ThinkingTags
from scripted_engine import Stage, staged

TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- elif opens %}
{{- '<think>\\n' }}
{%- endif %}
"""
"""As Qwen3's: it tells the model not to think, leaves it to it, or begins the thoughts itself."""

THOUGHT = "<think>\nWhat could 1 < 2 mean?\nHm.\n</think>\n\nIt means: less."
CASES = {
    "opened by the answer": (THOUGHT, False, "What could 1 < 2 mean?\nHm.", "It means: less."),
    "opened by the prompt": (THOUGHT.removeprefix("<think>\n"), True, "What could 1 < 2 mean?\nHm.", "It means: less."),
    "nothing thought": ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
    "no thoughts": ("Yes, <think> is a tag.", False, "", "Yes, <think> is a tag."),
    "blanks before an answer": ("\n Yes.", False, "", "\n Yes."),
    "cut off": ("<think>\nAnd so on and </thi", False, "And so on and </thi", ""),
    "only blanks": (" \n", False, "", " \n"),
    "the beginning of a tag": ("<thi", False, "", "<thi"),
}


@pytest.fixture(scope="module")
def stage(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("thinker")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(starter / name, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    with staged(folder) as stage:
        yield stage


def ask(stage: Stage, text: str, finish: str = "stop", **fields: object) -> tuple[dict, dict, dict]:
    """The message and the usage, asked for whole; and what the stream of the same answer adds up to."""
    stage.engine.scripts = [stage.script(text, FinishEvent(finish)) for _ in range(2)]
    with OpenAI(base_url=f"{stage.url}/v1", api_key="any", max_retries=0) as client:
        common = {"model": "actor", "messages": [{"role": "user", "content": "Hi"}], "extra_body": fields}
        whole = client.chat.completions.create(**common)
        streamed: dict[str, str] = {}
        for chunk in client.chat.completions.create(**common, stream=True):
            for name, value in chunk.choices[0].delta.model_dump(exclude_unset=True).items():
                if isinstance(value, str) and name != "role":
                    streamed[name] = streamed.get(name, "") + value
    return whole.choices[0].message.model_dump(exclude_unset=True), whole.usage.model_dump(), streamed


def thoughts_and_text(parts: list[str], *, opened: bool) -> tuple[str, str]:
    parser = ThinkingParser(ThinkingTags(), open=opened)
    whole = message([piece for part in parts for piece in parser.push(part)] + parser.finish())
    return whole.reasoning, whole.text


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_place_to_cut_gives_the_same(case: tuple[str, bool, str, str]) -> None:
    written, opened, thought, text = case
    for at in range(len(written) + 1):
        assert thoughts_and_text([written[:at], written[at:]], opened=opened) == (thought, text)
    assert thoughts_and_text(list(written), opened=opened) == (thought, text)


@given(st.text(alphabet="<think>/ \nab", max_size=40), st.booleans(), st.integers(0, 40))
def test_any_text_is_the_same_in_two_pieces(written: str, opened: bool, at: int) -> None:
    whole = thoughts_and_text([written], opened=opened)
    assert thoughts_and_text([written[:at], written[at:]], opened=opened) == whole


@pytest.mark.parametrize("opened", [False, True], ids=["by the answer", "by the prompt"])
def test_thoughts_go_out_by_both_names_and_are_counted(stage: Stage, opened: bool) -> None:
    written = THOUGHT.removeprefix("<think>\n") if opened else THOUGHT
    whole, usage, streamed = ask(stage, written, chat_template_kwargs={"opens": opened})
    for answer in (whole, streamed):
        assert answer["reasoning_content"] == answer["reasoning"] == "What could 1 < 2 mean?\nHm."
        assert answer["content"] == "It means: less."
    thinking = usage["completion_tokens_details"]["reasoning_tokens"]
    spoken = len(stage.tokenizer.encode("\n\nIt means: less.", special=False))
    assert usage["completion_tokens"] - spoken - 3 <= thinking <= usage["completion_tokens"] - spoken + 3


def test_thoughts_that_are_cut_off_are_all_there_is(stage: Stage) -> None:
    whole, usage, streamed = ask(stage, "<think>\nWell, ", "length")
    assert whole["content"] == ""
    assert whole["reasoning_content"] == streamed["reasoning_content"] == "Well,"
    assert usage["completion_tokens_details"]["reasoning_tokens"] >= 3


@pytest.mark.parametrize("fields", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_thinking_can_be_turned_off(stage: Stage, fields: dict) -> None:
    whole, usage, _ = ask(stage, "Yes.", **fields)
    assert stage.tokenizer.decode(stage.engine.requests[-1].prompt, special=True).endswith("</think>\n\n")
    assert (whole["content"], "reasoning" in whole) == ("Yes.", False)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


def test_an_effort_leaves_it_on(stage: Stage) -> None:
    ask(stage, "Yes.", reasoning_effort="high")
    assert "</think>" not in stage.tokenizer.decode(stage.engine.requests[-1].prompt, special=True)


def test_thoughts_hold_no_calls(stage: Stage) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "now"}}]
    whole, _, _ = ask(stage, f"<think>\nI could write {call}.\n</think>\n\n{call}", tools=tools)
    assert [one["function"]["name"] for one in whole["tool_calls"]] == ["now"]
    assert call in whole["reasoning"]


@pytest.mark.parametrize("summary", [None, "auto"])
def test_thoughts_are_items_of_responses(stage: Stage, summary: str | None) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    stage.engine.scripts = [stage.script(f"{THOUGHT}\n{call}", FinishEvent("stop")) for _ in range(2)]
    common = {
        "model": "actor",
        "input": "Hi",
        "tools": [{"type": "function", "name": "now"}],
        "reasoning": {"effort": "high", "summary": summary},
        "include": ["reasoning.encrypted_content"],
    }
    with OpenAI(base_url=f"{stage.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True) as client:
        whole = client.responses.create(**common)
        events = list(client.responses.create(**common, stream=True))
    for response in (whole, events[-1].response):
        assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
        thoughts = response.output[0]
        assert unsealed(thoughts.encrypted_content) == "What could 1 < 2 mean?\nHm."
        assert ((thoughts.summary if summary else thoughts.content) or [])[0].text == "What could 1 < 2 mean?\nHm."
        assert bool(thoughts.summary) == (summary is not None)
        assert response.output_text == "It means: less."
        assert response.usage.output_tokens_details.reasoning_tokens > 5
    kind = "response.reasoning_summary_text.delta" if summary else "response.reasoning_text.delta"
    assert "".join(event.delta for event in events if event.type == kind) == "What could 1 < 2 mean?\nHm."
