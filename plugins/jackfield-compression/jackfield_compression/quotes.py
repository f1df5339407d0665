"""Lines out of messages that are left out, because the question seems to be about them."""

from collections.abc import Iterator, Sequence

from jackfield.hooks import ChatMessage
from jackfield_compression.content import texts
from jackfield_compression.draft import Draft
from jackfield_compression.excerpt import matches, pieces

SHARE = 1 / 16
"""Of the room for a conversation, quotes take no more than this."""


def quote(draft: Draft, count: int, room: int) -> list[str]:
    """The lines that share the most and rarest words with the question, in their order.

    Args:
        draft: what is left out, and the question.
        count: the most lines.
        room: the most tokens of all of them.
    """
    lines = list(dict.fromkeys(_lines(draft.left_out)))
    chosen: list[int] = []
    for index in matches([line for _, line in lines], count, draft.words):
        size = draft.measure(_told(*lines[index]))
        if size <= room:
            room -= size
            chosen.append(index)
    draft.counts["extractive"]["quoted"] += len(chosen)
    return [_told(*lines[index]) for index in sorted(chosen)]


def _lines(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, str]]:
    for message in messages:
        for _, text in texts(message):
            for line in pieces(text):
                if stripped := line.strip():
                    yield str(message.get("role")), stripped


def _told(role: str, line: str) -> str:
    return f"{role}: {line}\n"
