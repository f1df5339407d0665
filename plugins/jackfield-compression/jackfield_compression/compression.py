"""What has become of the beginning of a conversation: decisions about its messages, not the messages themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jackfield.hooks import ChatMessage

_TAKEN_NOTE = "Understood."


def lead(left_out: int, quotes: Sequence[str] = (), summary: str | None = None) -> list[ChatMessage]:
    """What stands for messages that were left out: said by the user and taken note of by the assistant.

    So roles alternate whatever follows, which the strictest templates demand, and neither the system prompt, after
    which the tools would have to be read again, nor any message of the client's has to be changed.
    """
    note = f"[{left_out} earlier messages of this conversation have been left out, since it became too long.]"
    if quotes:
        note = f"{note}\n\nLines of them that the next question may be about:\n{''.join(quotes)}"
    if summary:
        note = f"{note}\n\nA summary of them:\n{summary}"
    return [{"role": "user", "content": note}, {"role": "assistant", "content": _TAKEN_NOTE}]


@dataclass(frozen=True, slots=True)
class Compression:
    """How the first messages of a conversation are made shorter; it fits every conversation that begins with them."""

    length: int
    """How many messages it is about."""
    head: int
    """How many of them make the system prompt."""
    dropped: frozenset[int]
    """Messages that are left out."""
    replaced: Mapping[int, ChatMessage]
    """Shorter versions of messages."""
    tokens: int
    """Of what is kept, the system prompt not counted; quotes and a summary count with the most that they may be."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What each strategy has done."""
    quotes: tuple[str, ...] = ()
    """Lines of what is left out."""
    summary: str | None = None
    """Of what is left out; None until somebody has asked for it, empty when there was none to be had."""

    @property
    def is_nothing(self) -> bool:
        """Whether nothing could be taken away."""
        return not self.dropped and not self.replaced

    def apply(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The shorter conversation: what comes after the first messages is added as it is."""
        kept = [index for index in range(self.head, self.length) if index not in self.dropped]
        return [
            *messages[: self.head],
            *(lead(len(self.dropped), self.quotes, self.summary) if self.dropped else ()),
            *(self.replaced.get(index, messages[index]) for index in kept),
            *messages[self.length :],
        ]
