"""Summaries by the served model, which is played here."""

import asyncio
from collections.abc import Sequence
from typing import Any

from compression_conversations import WordTokenizer, assistant, chat, user
from jackfield.errors import UnavailableError
from jackfield.hooks import ChatMessage, Compressed
from jackfield_compression import Plugin, Settings

count = WordTokenizer().count


class Model:
    """Summarises everything as what it is told to, and keeps what it was asked."""

    def __init__(self, says: str = "They counted turns.", hangs: bool = False, fails: bool = False) -> None:
        self.says, self.hangs, self.fails = says, hangs, fails
        self.asked: list[str] = []
        self.data_dir = None

    async def complete(
        self, messages: Sequence[ChatMessage], *, model: str | None = None, max_tokens: int = 256
    ) -> str:
        assert model == "model"
        self.asked.append(messages[0]["content"])
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise UnavailableError("Busy.")
        return self.says


def plugin(model: Model, **settings: Any) -> Plugin:
    made = Plugin()
    made.startup(model, Settings(**{"strategy": ["extractive", "summary"], "remember_on_disk": False, **settings}))  # type: ignore[arg-type]
    return made


def compress(made: Plugin, messages: list[ChatMessage], budget: int = 600) -> Compressed:
    found = asyncio.run(made.compress_context(messages, [], WordTokenizer(), budget, "model"))
    assert found is not None
    return found


def test_what_is_left_out_is_summarised_and_the_summary_stays() -> None:
    model = Model()
    made, messages = plugin(model, summary_tokens=20), chat(25)
    first = compress(made, messages, 1200)
    assert first.messages[0]["content"].endswith("A summary of them:\nThey counted turns.")
    (asked,) = model.asked
    left_out = first.report["dropped"]
    assert "Turn 0." in asked
    assert f"Turn {left_out // 2 - 1}." in asked
    assert f"Turn {left_out // 2}." not in asked
    assert first.report["strategies"]["summary"]["messages"] == left_out
    assert first.report["strategies"]["summary"]["tokens"] == 4
    model.says = "Something else."
    second = compress(made, [*messages, assistant("Yes."), user("And?")], 1200)
    assert second.messages[: len(first.messages)] == list(first.messages)
    assert len(model.asked) == 1


def test_the_next_summary_begins_with_the_one_before_and_leaves_out_what_is_in_it() -> None:
    model = Model()
    made, messages = plugin(model, summary_tokens=20), chat(100)
    first = compress(made, messages[:121], 3000)
    model.says = "They counted on."
    second = compress(made, messages, 3000)
    assert "They counted on." in second.messages[0]["content"]
    assert len(model.asked) == 2
    assert "They counted turns." in model.asked[1]
    last = first.report["dropped"] // 2 - 1
    assert f"Turn {last}." in model.asked[0]
    assert f"Turn {last}." not in model.asked[1]
    assert f"Turn {last + 1}." in model.asked[1]


def test_the_question_to_the_model_fits() -> None:
    model = Model()
    compress(plugin(model, summary_tokens=100), chat(2000), 900)
    assert count([user(model.asked[0])]) <= 900 - 100


def test_a_summary_that_does_not_come_in_time_is_done_without_and_not_asked_for_again() -> None:
    model = Model(hangs=True)
    made, messages = plugin(model, summary_seconds=0.01), chat(40)
    first = compress(made, messages)
    assert first.messages[0]["content"].endswith("since it became too long.]")
    again = compress(made, messages)
    assert again.messages == first.messages
    assert len(model.asked) == 1


def test_a_model_that_fails_costs_only_the_summary() -> None:
    found = compress(plugin(Model(fails=True)), chat(40))
    assert found.report["strategies"]["summary"]["tokens"] == 0
    assert count(found.messages) <= 600


def test_thoughts_are_no_part_of_it() -> None:
    found = compress(plugin(Model("<think>\nWell.\n</think>\n\nThey counted.")), chat(40))
    assert found.messages[0]["content"].endswith("A summary of them:\nThey counted.")


def test_a_summary_that_is_too_long_is_left_out() -> None:
    found = compress(plugin(Model("blah " * 2000)), chat(40))
    assert "blah" not in found.messages[0]["content"]
    assert count(found.messages) <= 600


def test_two_requests_at_once_get_the_same() -> None:
    class Fickle(Model):
        """Never says the same again."""

        async def complete(self, *_: Any, **__: Any) -> str:
            self.asked.append("")
            return f"Summary {len(self.asked)}."

    async def both() -> list[Compressed | None]:
        made = plugin(Fickle())
        asked = [made.compress_context(chat(40), [], WordTokenizer(), 600, "model") for _ in range(2)]
        return await asyncio.gather(*asked)

    one, other = asyncio.run(both())
    assert one is not None
    assert other is not None
    assert one.messages == other.messages
