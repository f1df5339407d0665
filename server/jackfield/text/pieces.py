"""What an answer is made of, in the order in which the model wrote it."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks before it speaks."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallText:
    """A whole call as the model wrote it; the arguments are JSON text."""

    name: str
    arguments: str
    repaired: bool = False
    """Whether it was not written as the model's own format has it."""


def new_call_id() -> str:
    """As OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its arguments follow, and then a `CallEnd`, unless the answer is cut."""

    name: str
    repaired: bool = False
    id: str = field(default_factory=new_call_id, compare=False)


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of the call that began last; JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """That call is whole."""


Piece = str | Thought | ToolCallText | CallStart | CallArguments | CallEnd
"""Text, or something else."""


@dataclass(slots=True)
class Call:
    """A call that has been put together."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Message:
    """An answer that has been put together."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        """More of it."""
        match piece:
            case str():
                self.text += piece
            case Thought(text):
                self.reasoning += text
            case ToolCallText(name, arguments):
                self.calls.append(Call(new_call_id(), name, arguments))
            case CallStart():
                self.calls.append(Call(piece.id, piece.name))
            case CallArguments(text):
                self.calls[-1].arguments += text


def message(pieces: Iterable[Piece]) -> Message:
    """Put an answer together."""
    whole = Message()
    for piece in pieces:
        whole.add(piece)
    return whole


def in_parts(pieces: Iterable[Piece]) -> list[Piece]:
    """The same with neighbouring text, thoughts and arguments joined, and whole calls taken apart."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        match piece, last:
            case ToolCallText(name, arguments, repaired), _:
                joined += [CallStart(name, repaired), CallArguments(arguments), CallEnd()]
            case str(), str():
                joined[-1] = last + piece
            case Thought(text), Thought(before):
                joined[-1] = Thought(before + text)
            case CallArguments(text), CallArguments(before):
                joined[-1] = CallArguments(before + text)
            case _:
                joined.append(piece)
    return [piece for piece in joined if piece != ""]
