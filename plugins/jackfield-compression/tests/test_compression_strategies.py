"""Each strategy by itself, and what they are together."""

import asyncio
import json
from typing import Any

import pytest

from compression_conversations import (
    TOOL,
    WordTokenizer,
    assistant,
    chat,
    compress,
    lines,
    plugin,
    step,
    text_of,
    user,
)
from jackfield.errors import InvalidRequestError
from jackfield.hooks import ChatMessage
from jackfield_compression.content import texts
from jackfield_compression.conversation import Conversation
from jackfield_compression.extractive import REPEATED
from jackfield_compression.sizes import IMAGE_TOKENS, SizeCache, Sizes

count = WordTokenizer().count
SYSTEM: ChatMessage = {"role": "system", "content": "You are terse."}


def kept(messages: list[ChatMessage], budget: int, **settings: Any) -> list[ChatMessage]:
    found = compress(plugin(**settings), messages, budget)
    assert found is not None
    return list(found.messages)


def done(messages: list[ChatMessage], budget: int, **settings: Any) -> dict[str, Any]:
    found = compress(plugin(**settings), messages, budget)
    assert found is not None
    return dict(found.report["strategies"])


# ---------------------------------------------------------------------------------------- window


def test_the_oldest_turns_go_and_a_note_says_how_many() -> None:
    messages = [SYSTEM, *chat(50)]
    system, note, taken, *rest = kept(messages, 600, strategy="window")
    assert system == SYSTEM
    assert taken["role"] == "assistant"
    assert rest == messages[-len(rest) :]
    assert note == {
        "role": "user",
        "content": f"[{len(messages) - len(rest) - 1} earlier messages of this conversation have been left out, "
        "since it became too long.]",
    }


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_it_is_compressed_to_the_target(target: float) -> None:
    after = count(kept(chat(200), 2000, strategy="window", target=target))
    assert target * 2000 - 150 < after < target * 2000 + 50


def test_the_target_is_a_share_of_what_system_prompt_and_tools_leave() -> None:
    system = {"role": "system", "content": "rule " * 1000}
    tools = [TOOL | {"description": "word " * 400}]
    found = compress(plugin(), [system, *chat(100)], 2000, tools)
    assert found is not None
    assert 1500 < found.report["tokens_after"] < 1800


def test_of_a_long_turn_the_last_steps_stay_with_its_question() -> None:
    work = [message for number in range(30) for message in step(number, lines(10))]
    messages = [user("Old."), assistant("Yes."), user("Do it."), *work, assistant("Done."), user("And now?")]
    note, _, *rest = kept(messages, 800, strategy="window")
    assert "earlier messages" in note["content"]
    assert rest[0] == user("Do it.")
    assert rest[1:] == messages[-len(rest) + 1 :]
    assert rest[1]["tool_calls"]
    assert len(rest) < len(work)


def test_in_a_long_last_turn_the_oldest_steps_go() -> None:
    work = [message for number in range(30) for message in step(number, lines(10))]
    messages = [SYSTEM, user("Do it."), *work]
    rest = kept(messages, 800, strategy="window")
    assert rest[0] == SYSTEM
    assert rest[3] == user("Do it.")
    assert rest[4:] == messages[-len(rest) + 4 :]


def test_parallel_calls_stay_whole_even_when_results_come_late() -> None:
    call, first, second = step(1, lines(5), lines(5))
    late = [call, first, user("Wait."), second]
    messages = [*chat(40), assistant("So."), user("Try."), *late, assistant("Done."), user("And?")]
    packages = Conversation(messages).packages
    together = [{index for unit in package for index in unit.indices} for package in packages]
    at = messages.index(call)
    (one,) = [package for package in together if at in package]
    assert {at, at + 1, at + 2, at + 3} <= one


def test_a_call_without_results_is_kept_or_left_out_like_any_message() -> None:
    call, _ = step(1, "never mind")
    messages = [user("Try."), call, user("Stop. What else?"), assistant("This."), user("Go on.")]
    assert [[unit.indices for unit in package] for package in Conversation(messages).packages] == [
        [range(0, 1), range(1, 2)],
        [range(2, 3), range(3, 4)],
    ]


def test_a_greeting_before_the_first_question_goes_first_and_as_a_whole() -> None:
    messages = [*step(1, "No news."), assistant("Welcome!"), *chat(40)]
    assert [unit.indices for unit in Conversation(messages).packages[0]] == [range(0, 3)]


# ---------------------------------------------------------------------------------------- extractive


def reading(path: str, *contents: str) -> list[ChatMessage]:
    return [
        message
        for number, content in enumerate(contents)
        for message in step(hash(path) % 97 + number, content, path=path)
    ]


def test_of_a_file_that_was_read_again_the_last_version_stays() -> None:
    old, new = lines(60, "old"), lines(60, "new")
    messages = [user("Read."), *reading("a.txt", old, new), assistant("Read."), user("So?")]
    rest = kept(messages, 400, strategy="extractive", target=0.9)
    assert [message["content"] for message in rest if message["role"] == "tool"] == [REPEATED + "\n", new]


def test_a_much_shorter_last_version_does_not_replace_the_file() -> None:
    messages = [user("Read."), *reading("a.txt", lines(60), "File unchanged since it was read." * 4)]
    messages += [assistant("Read."), user("So? " + "hm " * 150)]
    assert "repeated" not in done(messages, 450).get("extractive", {})


def test_files_in_fences_and_tags_and_written_files_are_versions_of_each_other() -> None:
    first = "def first():\n" + "    pass\n" * 40
    messages = [
        user(f"Here:\n```python src/app.py\n{first}```\nLook."),
        assistant("Yes."),
        user(f'And:\n<file path="src/app.py">\n{first.replace("first", "second")}</file>\nLook.'),
        *step(1, "ok", name="write_file", path="./src/app.py", content=first.replace("first", "third")),
        assistant("Written."),
        user("Thanks."),
    ]
    rest = kept(messages, 360, strategy="extractive")
    text = text_of(rest)
    assert "first()" not in text
    assert "second()" not in text
    assert "third()" in text
    assert text.count("Left out here") == 2
    assert "Here:" in text
    assert "Look." in text


def test_equal_texts_are_repetitions_whatever_they_are_called() -> None:
    output = lines(50)
    messages = [user("Run."), *step(1, output, n=1), *step(2, output, n=2), assistant("Ran."), user("So?")]
    results = [
        message["content"]
        for message in kept(messages, 340, strategy="extractive", target=0.9)
        if message["role"] == "tool"
    ]
    assert results == [REPEATED + "\n", output]


def test_long_outputs_keep_head_tail_and_what_the_question_is_about() -> None:
    output = lines(300).replace("line 150 ", "line 150 flamingo ")
    messages = [user("Run."), *step(1, output), assistant("Ran."), user("Where is the flamingo?")]
    rest = kept(messages, 800, head_lines=3, tail_lines=2, matching_lines=5)
    (result,) = [message["content"] for message in rest if message["role"] == "tool"]
    found = [line.split()[1] if line.startswith("line") else line for line in result.splitlines()]
    assert found == ["0", "1", "2", "[147 lines left out]", "150", "[147 lines left out]", "298", "299"]


def test_later_questions_do_not_change_what_was_kept() -> None:
    made = plugin(head_lines=3, tail_lines=2, matching_lines=5)
    output = lines(300).replace("line 150 ", "line 150 flamingo ").replace("line 99 ", "line 99 heron ")
    messages = [user("Run."), *step(1, output), assistant("Ran."), user("Where is the flamingo?")]
    first = compress(made, messages, 800)
    second = compress(made, [*messages, assistant("There."), user("And where is the heron?")], 800)
    assert first is not None
    assert second is not None
    assert second.messages[: len(first.messages)] == list(first.messages)
    assert "flamingo" in text_of(second.messages)
    assert "line 99 heron" not in text_of(second.messages)


def test_no_more_is_shortened_than_it_takes() -> None:
    steps = [step(number, lines(200, f"step{number}"), n=number) for number in range(4)]
    messages = [user("Run."), *(message for one in steps for message in one), assistant("Ran."), user("So?")]
    results = [message for message in kept(messages, 2400) if message["role"] == "tool"]
    assert ["left out" in message["content"] for message in results] == [True, True, True, False]


def test_what_was_said_is_never_shortened() -> None:
    prose = "It rains. " * 200
    messages = [user(prose), assistant(prose), user("So?")]
    assert compress(plugin(strategy="extractive"), messages, 400) is None


def test_content_in_parts_is_shortened_part_by_part() -> None:
    call, result = step(1, "")
    result["content"] = [{"type": "text", "text": lines(200)}, {"type": "text", "text": "short"}]
    messages = [user("Run."), call, result, assistant("Ran."), user("So?")]
    (shorter,) = [message for message in kept(messages, 500) if message["role"] == "tool"]
    assert "lines left out" in shorter["content"][0]["text"]
    assert shorter["content"][1] == {"type": "text", "text": "short"}


def test_no_line_of_a_message_takes_long() -> None:
    # An expression that backtracks would take minutes for this.
    messages = [user("<a path='x' " * 40_000 + "\n```" + "a" * 200_000), assistant("Yes."), user("So?")]
    assert compress(plugin(strategy="extractive"), messages, 900) is None


def test_pictures_stay_where_they_are() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}
    message = {"role": "user", "content": [{"type": "text", "text": "Look."}, picture]}
    sizes = Sizes(WordTokenizer(), "model", SizeCache())
    assert IMAGE_TOKENS < sizes.of(message) < IMAGE_TOKENS + 20
    assert [text for _, text in texts(message)] == ["Look."]


def test_arguments_of_old_calls_are_shortened_and_stay_json() -> None:
    written = step(1, "ok", name="write_file", path="a.txt", content=lines(300))
    messages = [user("Write."), *written, assistant("Done."), user("So?")]
    (call,) = [message for message in kept(messages, 800) if message.get("tool_calls")]
    given = json.loads(call["tool_calls"][0]["function"]["arguments"])
    assert given["path"] == "a.txt"
    assert "lines left out" in given["content"]


# ---------------------------------------------------------------------------------------- together


def test_each_does_only_what_the_ones_before_it_have_left() -> None:
    work = [message for number in range(10) for message in step(number, lines(200, f"n{number}"))]
    messages = [user("Run."), *work, assistant("Ran."), user("So?")]
    assert done(messages, 5000, strategy=["extractive", "window"]).keys() == {"extractive"}
    assert done(messages, 900, strategy=["extractive", "window"]).keys() == {"extractive", "window"}
    assert done(messages, 5000, strategy=["window", "extractive"]).keys() == {"window"}


@pytest.mark.parametrize("strategy", ["window", ["extractive", "window"]])
def test_what_came_last_is_shortened_when_nothing_else_is_left(strategy: Any) -> None:
    messages = [*chat(5), *step(1, lines(1000), lines(900))]
    found = compress(plugin(strategy=strategy), messages, 700)
    assert found is not None
    assert found.report["tokens_after"] <= 700
    assert found.report["strategies"]["last_resort"]["shortened"] >= 2
    assert found.messages[-4] == messages[-4]


def test_a_question_that_is_too_long_by_itself_is_not_touched() -> None:
    messages = [*chat(5), assistant("Yes."), user(f"```\n{lines(500)}```\nWhat is this?")]
    rest = kept(messages, 500)
    assert rest[-1] == messages[-1]
    assert len(rest) == 3


def test_what_fits_is_left_alone() -> None:
    assert compress(plugin(), chat(5), 100_000) is None


def test_a_smaller_budget_compresses_again_and_a_larger_one_does_not() -> None:
    made = plugin()
    messages = chat(100)
    first = compress(made, messages, 1000)
    smaller = compress(made, messages, 300)
    larger = compress(made, messages, 1200)
    assert first is not None
    assert smaller is not None
    assert larger is not None
    assert smaller.report["tokens_after"] <= 300
    assert larger.messages == smaller.messages


def test_the_template_of_a_refused_conversation_is_nobodys_failure() -> None:
    class Refusing(WordTokenizer):
        def count(self, messages: Any, tools: Any = ()) -> int:
            if len(messages) > 3:
                raise InvalidRequestError("No.")
            return super().count(messages, tools)

    assert asyncio.run(plugin().compress_context(chat(60), [], Refusing(), 400, "model")) is None


def test_lines_of_what_is_left_out_are_quoted_when_the_question_is_about_them() -> None:
    messages = [user("The flamingo is called 4711."), assistant("I see."), *chat(60)]
    messages[-1] = user("What is the flamingo called?")
    note = kept(messages, 600)[0]["content"]
    assert note.endswith(
        "since it became too long.]\n\nLines of them that the next question may be about:\n"
        "user: The flamingo is called 4711.\n"
    )
    assert "4711" not in text_of(kept(messages, 600, strategy="window"))


def test_quotes_take_little_room() -> None:
    messages = [user("flamingo " + "so " * 90), assistant("Yes."), *chat(20)]
    for number in range(9):
        messages += [assistant("Yes."), user(f"The flamingo {number} is " + "so " * 20)]
    messages += [assistant("Yes."), *chat(20)]
    messages[-1] = user("What is the flamingo called?")
    note = kept(messages, 1000)[0]["content"]
    assert 1 < note.count("flamingo") < 5
    assert len(WordTokenizer().encode(note)) < 1000 / 16 + 40


def test_gaps_tell_how_much_is_missing_of_the_original_however_often_it_was_shortened() -> None:
    messages = [user("Run."), *step(1, lines(300)), assistant("Ran."), user("So?")]
    (result,) = [message["content"] for message in kept(messages, 300) if message["role"] == "tool"]
    shown = [line for line in result.splitlines() if line.startswith("line")]
    assert f"[{300 - len(shown)} lines left out]" in result
    assert len(shown) < 40


def test_it_fits_even_where_sizes_do_not_add_up() -> None:
    class Longer(WordTokenizer):
        """Its template takes more the longer a conversation is."""

        def count(self, messages: Any, tools: Any = ()) -> int:
            return super().count(messages, tools) + 10 * len(messages)

    made, messages, tokens = plugin(), chat(60), []
    for number in range(60):
        messages += [assistant("Yes."), user(f"Go on with {number}.")]
        found = asyncio.run(made.compress_context(messages, [], Longer(), 700, "model"))
        assert found is not None
        assert Longer().count(found.messages) <= 700
        tokens.append(found.report["tokens_after"])
    assert max(tokens) > 600, "no more is left out than has to be"


def test_the_question_keeps_its_file_even_when_a_tool_reads_it_again() -> None:
    source = lines(60)
    question = user(f"```text a.txt\n{source}```\nWhat is this?")
    messages = [*chat(40), assistant("Yes."), question, *step(1, source, path="a.txt"), *step(2, "ok")]
    assert question in kept(messages, 900)
