"""Conversations to compress, a tokenizer that counts words, and what must hold of every result."""

import asyncio
import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st

from jackfield.errors import InvalidRequestError
from jackfield.hooks import ChatMessage, Compressed, JsonObject
from jackfield_compression import Plugin, Settings

TOOL = {"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}
WORDS = ["error", "open", "port", "build", "cache", "queue", "token", "stream", "retry", "server", "client", "socket"]


class WordTokenizer:
    """Words and signs are tokens. Its template is as strict as the strictest: roles alternate, results have calls."""

    _ids: ClassVar[dict[str, int]] = {}

    def encode(self, text: str) -> list[int]:
        return [self._ids.setdefault(piece, len(self._ids)) for piece in re.findall(r"\w+|[^\w\s]", text)]

    def decode(self, tokens: Sequence[int]) -> str:
        words = list(self._ids)
        return " ".join(words[token] for token in tokens)

    def count(self, messages: Sequence[ChatMessage], tools: Sequence[JsonObject] = ()) -> int:
        refuse_disorder(messages)
        return 3 + sum(map(self._size, messages)) + len(self.encode(json.dumps(list(tools))))

    def _size(self, message: ChatMessage) -> int:
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        calls = [json.dumps(call["function"]) for call in message.get("tool_calls") or ()]
        return 4 + sum(len(self.encode(text)) for text in [*texts, *calls])


def refuse_disorder(messages: Sequence[ChatMessage]) -> None:
    """As chat templates do that know of no exceptions."""
    before = "start"
    waiting: set[str | None] = set()
    for message in messages:
        role = message["role"]
        allowed = {
            "start": {"system", "user"},
            "system": {"user"},
            "user": {"assistant"},
            "assistant": {"tool"} if waiting else {"user"},
            "tool": {"tool"} if waiting else {"assistant"},
        }
        if role not in allowed[before] or (role == "tool" and message["tool_call_id"] not in waiting):
            raise InvalidRequestError(f"{role} after {before}")
        waiting |= {call["id"] for call in message.get("tool_calls") or ()}
        waiting -= {message.get("tool_call_id")}
        before = role
    if waiting:
        raise InvalidRequestError("a call without its result")


@dataclass
class Host:
    """What a plugin needs of the server."""

    data_dir: Path | None = None


def plugin(folder: Path | None = None, **settings: Any) -> Plugin:
    """A plugin as the server starts it, which keeps its data in a folder, or in memory only."""
    made = Plugin()
    made.startup(Host(folder), Settings(**{"remember_on_disk": folder is not None, **settings}))  # type: ignore[arg-type]
    return made


def compress(
    made: Plugin, messages: Sequence[ChatMessage], budget: int, tools: Sequence[JsonObject] = ()
) -> Compressed | None:
    """What the plugin makes of a conversation; it must not change the client's objects."""
    before = copy.deepcopy(messages)
    found = asyncio.run(made.compress_context(messages, tools, WordTokenizer(), budget, "model"))
    assert messages == before
    return found


def shortened(made: Plugin, messages: Sequence[ChatMessage], budget: int) -> list[ChatMessage]:
    """The conversation as the model gets it: as it is when it fits, as the server does."""
    if WordTokenizer().count(messages) <= budget:
        return list(messages)
    found = compress(made, messages, budget)
    return list(found.messages) if found else list(messages)


# ------------------------------------------------------------------------------------------ conversations


def user(text: str) -> ChatMessage:
    return {"role": "user", "content": text}


def assistant(text: str) -> ChatMessage:
    return {"role": "assistant", "content": text}


def step(number: int, *outputs: str, name: str = "read_file", **given: Any) -> list[ChatMessage]:
    """A call of a tool for each output, and its result."""
    calls = [
        {
            "id": f"call_{number}_{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given or {"n": [number, index]})},
        }
        for index in range(len(outputs))
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": output}
        for call, output in zip(calls, outputs, strict=True)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]


def lines(count: int, name: str = "line") -> str:
    """An output of so many lines, each of its own."""
    return "".join(f"{name} {index} {WORDS[index % len(WORDS)]}\n" for index in range(count))


def chat(turns: int, words: int = 20) -> list[ChatMessage]:
    """Questions and answers, ending with a question."""
    said = [user("Turn 0. " + "hm " * words)]
    for turn in range(1, turns):
        said += [assistant(f"Answer {turn - 1}. " + "so " * words), user(f"Turn {turn}. " + "hm " * words)]
    return said


@st.composite
def turns(draw: st.DrawFn, number: int) -> list[ChatMessage]:
    """What the user says, steps with parallel calls, and an answer."""
    said = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join))
    if draw(st.booleans()):
        said += f"\n```python src/{draw(st.sampled_from('abc'))}.py\n{_code(draw)}```\n"
    asked: ChatMessage = user(f"Turn {number}: {said}")
    if draw(st.booleans()):
        asked = {"role": "user", "content": [{"type": "text", "text": asked["content"]}]}
    messages = [asked]
    for at in range(draw(st.integers(0, 4))):
        outputs = draw(st.lists(st.sampled_from([0, 3, 30, 130]), min_size=1, max_size=3))
        given = draw(st.sampled_from([{"path": "src/a.py"}, {"path": "b.txt"}, {}]))
        messages += step(100 * number + at, *(lines(count, f"out{number}") for count in outputs), **given)
    return [*messages, assistant(f"Answer {number}: " + "well " * draw(st.integers(1, 40)))]


def _code(draw: st.DrawFn) -> str:
    functions = draw(st.sampled_from([1, 12]))
    return "".join(
        f"def function_{n}(a, b):\n" + "".join(f"    a = a + {n * 10 + i}\n" for i in range(10)) + "    return a\n\n"
        for n in range(functions)
    )


@st.composite
def conversations(draw: st.DrawFn) -> list[ChatMessage]:
    """Whole conversations that end where the model has to answer."""
    system = [{"role": "system", "content": "You are terse."}] if draw(st.booleans()) else []
    count = draw(st.integers(1, 7))
    messages = [message for number in range(count) for message in draw(turns(number))]
    end = draw(st.sampled_from(points(messages)[-6:]))
    return [*system, *messages[:end]]


def points(messages: Sequence[ChatMessage]) -> list[int]:
    """How long a conversation was each time that the model was asked."""
    return [index for index in range(1, len(messages)) if messages[index]["role"] == "assistant"]


def text_of(messages: Sequence[ChatMessage]) -> str:
    """All that is in a conversation."""
    return json.dumps(list(messages), ensure_ascii=False)
