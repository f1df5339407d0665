"""A conversation as the variables of a chat template, and where its last message goes on.

What is done to messages on the way is what transformers does, since templates are written for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""One message as chat templates expect it: ``role``, ``content`` and perhaps ``tool_calls``."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's thoughts, the most common one first."""

MARK = "THE_ANSWER_GOES_ON_HERE "
"""Behind the message that is to be continued. The space tells whether the template has trimmed it."""


def prepared(messages: Sequence[Message]) -> list[Message]:
    """Messages without keys that have no value, and with their thoughts under all names that templates look for.

    Raises:
        ValueError: there are none.
    """
    if not messages:
        raise ValueError("it is empty")
    return [_named({key: value for key, value in message.items() if value is not None}) for message in messages]


def _named(message: Message) -> Message:
    thoughts = next((message[name] for name in REASONING if name in message), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def marked(messages: Sequence[Message]) -> list[Message]:
    """Messages of which the last is marked where its text ends.

    Raises:
        ValueError: it has none.
    """
    *before, last = messages
    content = last.get("content")
    if isinstance(content, str):
        return [*before, {**last, "content": content + MARK}]
    parts = list(content or [])
    place = _last_text(parts)
    parts[place] = {**parts[place], "text": parts[place]["text"] + MARK}
    return [*before, {**last, "content": parts}]


def cut(prompt: str, messages: Sequence[Message]) -> str:
    """The prompt that a template has made of marked messages, up to the mark.

    Raises:
        ValueError: the template leaves the last message out, or some of it.
    """
    content = messages[-1]["content"]
    text = content if isinstance(content, str) else content[_last_text(content)]["text"]
    place = prompt.rfind(MARK.rstrip())
    if place < 0 or text.removesuffix(MARK).strip() not in prompt:
        raise ValueError("it leaves out some of the last message, which is to be continued")
    # Where the mark has lost its space, the template trims messages; the text before the mark has been spared that.
    return prompt[:place] if prompt.startswith(MARK, place) else prompt[:place].rstrip()


def _last_text(parts: Sequence[Mapping[str, Any]]) -> int:
    place = next((place for place in reversed(range(len(parts))) if "text" in parts[place]), None)
    if place is None:
        raise ValueError("the last message has no text that could be continued")
    return place
