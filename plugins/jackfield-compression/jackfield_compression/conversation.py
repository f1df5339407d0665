"""How a conversation is put together: turns, and in them the pieces that can only stay or go as a whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from jackfield.hooks import ChatMessage, JsonObject
from jackfield_compression.content import calls

_OPENING = frozenset({"system", "developer", "user"})


@dataclass(frozen=True, slots=True)
class Unit:
    """Messages that belong together: what the user said, or an answer with its calls and all their results."""

    turn: int
    start: int
    end: int
    opens: bool
    """Whether the turn begins with it."""

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.end

    @property
    def indices(self) -> range:
        """Of its messages."""
        return range(self.start, self.end)


Package = list[Unit]
"""What goes together when something has to go."""


class Conversation:
    """The messages of a request, up to where the model has to answer."""

    def __init__(self, messages: Sequence[ChatMessage]) -> None:
        self.messages = messages
        self.head = _first(messages, lambda message: message.get("role") not in ("system", "developer"))
        """How many messages make the system prompt."""

    @cached_property
    def question(self) -> int | None:
        """The last user message."""
        roles = [message.get("role") for message in self.messages]
        return len(roles) - 1 - roles[::-1].index("user") if "user" in roles else None

    @cached_property
    def units(self) -> list[Unit]:
        """All that follows the system prompt, in order."""
        found: list[Unit] = []
        at, turn = self.head, 0
        while at < len(self.messages):
            opens, end = self._unit(at)
            turn += opens
            if turn == 0 and found:
                # Before the first turn there is no user to answer, so what is there stays or goes as a whole.
                found[0] = Unit(0, found[0].start, end, False)
            else:
                found.append(Unit(turn, at, end, opens))
            at = end
        return found

    def _unit(self, start: int) -> tuple[bool, int]:
        """Whether the unit that begins here opens a turn, and where it ends."""
        if self.messages[start].get("role") not in _OPENING:
            return False, self._answer(start)
        end = start + _first(self.messages[start:], lambda message: message.get("role") not in _OPENING)
        return any(message.get("role") == "user" for message in self.messages[start:end]), end

    def _answer(self, start: int) -> int:
        """Where an answer ends: after the results that follow it, and after the last result of any call in it."""
        end = start + 1
        while end < len(self.messages) and self.messages[end].get("role") == "tool":
            end += 1
        for at in range(start, len(self.messages)):
            if at == end:
                break
            end = max(end, self._last_result.get(at, 0) + 1)
        return end

    @cached_property
    def answered(self) -> dict[int, tuple[int, JsonObject]]:
        """For each tool's result the message that called the tool, and the call."""
        found: dict[int, tuple[int, JsonObject]] = {}
        made: dict[Any, tuple[int, JsonObject]] = {}
        for index, message in enumerate(self.messages):
            made |= {call.get("id"): (index, call) for call in calls(message)}
            if message.get("role") == "tool" and message.get("tool_call_id") in made:
                found[index] = made[message["tool_call_id"]]
        return found

    @cached_property
    def _last_result(self) -> dict[int, int]:
        return {caller: index for index, (caller, _) in self.answered.items()}

    @cached_property
    def protected(self) -> set[Unit]:
        """What must stay: the last user message, and what came last, which the model is to go on from."""
        return {unit for unit in self.units if self.question in unit.indices} | set(self.units[-1:])

    @cached_property
    def untouched(self) -> set[int]:
        """Messages that must not be changed: the system prompt and what the user said last."""
        asked = next((unit for unit in self.units if self.question in unit.indices), None)
        return {*range(self.head), *(asked.indices if asked else ())}

    @cached_property
    def packages(self) -> list[Package]:
        """What may go, the oldest first. A question goes with the last answer to it, so that roles alternate."""
        found: list[Package] = []
        for _, group in groupby(self.units, lambda unit: unit.turn):
            units = list(group)
            loose = [[unit] for unit in units if not unit.opens and unit not in self.protected]
            if self.protected.isdisjoint(units):
                openings = [unit for unit in units if unit.opens]
                loose = [*loose[:-1], [*openings, *(loose[-1] if loose else ())]]
            found += loose
        return found


def _first(messages: Sequence[ChatMessage], holds: Callable[[ChatMessage], bool]) -> int:
    """The index of the first message for which something holds; their number when there is none."""
    return next((index for index, message in enumerate(messages) if holds(message)), len(messages))
