"""Conversations as coding assistants have them, with facts planted at every depth."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jackfield.hooks import ChatMessage

SYSTEM = "You are a coding assistant. Read files and run commands with your tools, and answer briefly."
KINDS = ("chat", "answer", "log", "code")
"""Where a fact stands: in what the user said, in an answer, in the middle of a command's output, or in a function."""

_THINGS_TEXT = """
queue worker cache router parser socket session ledger index bucket shard replica gateway scheduler mailer beacon
"""
_TRAITS_TEXT = """
amber bronze copper crimson golden hazel indigo ivory jade lilac maroon ochre olive pearl scarlet silver teal umber
"""
_PROSE_TEXT = """
the build was slow again so we looked at how requests travel from the edge to the store and back and found that most
of the time goes into waiting for locks that nobody needs any more since the last change of the layout
"""
_THINGS, _TRAITS, _PROSE = _THINGS_TEXT.split(), _TRAITS_TEXT.split(), _PROSE_TEXT.split()
_STATES = ("started", "finished", "retried", "skipped", "queued", "checked")


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that may be asked later: a name and a number that are nowhere else."""

    name: str
    value: str
    kind: str
    message: int
    """The message that it stands in."""

    @property
    def question(self) -> str:
        """Asks for it, in its own words."""
        return f"What was the {self.name} again?"


@dataclass
class Session:
    """A conversation, growing turn by turn."""

    seed: int
    messages: list[ChatMessage] = field(default_factory=lambda: [{"role": "system", "content": SYSTEM}])
    facts: list[Fact] = field(default_factory=list)
    asked: dict[int, Fact] = field(default_factory=dict)
    """By user message, the fact that it asks for."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - the same conversation for the same seed
        self._names = [f"{trait} {thing}" for trait in _TRAITS for thing in _THINGS]
        self._random.shuffle(self._names)
        self._files: dict[str, str] = {}
        self._calls = 0

    def grow(self) -> None:
        """One more turn: a question, which may be about an old fact, some work with tools, and an answer."""
        tool = self._random.choice(["log", "code"])
        self._say("user", f"{self._question()}{self._prose(20)}. By the way, {self._told('chat')}.")
        for work in self._random.sample([self._read, self._run, self._run], 2):
            work()
        {"log": self._run, "code": self._read}[tool](self._fact(tool, len(self.messages) + 1))
        self._say("assistant", f"{self._prose(30)}. As {self._told('answer')}, {self._prose(10)}.")

    def _fact(self, kind: str, message: int) -> Fact:
        fact = Fact(self._names.pop(), str(self._random.randrange(10_000, 100_000)), kind, message)
        self.facts.append(fact)
        return fact

    def _told(self, kind: str) -> str:
        fact = self._fact(kind, len(self.messages))
        return f"the {fact.name} is {fact.value}"

    def _question(self) -> str:
        if not self.facts or self._random.random() < 0.5:
            return ""
        fact = self._random.choice(self.facts)
        self.asked[len(self.messages)] = fact
        return f"{fact.question} "

    def _say(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def _prose(self, words: int) -> str:
        start = self._random.randrange(len(_PROSE))
        return " ".join((_PROSE * 3)[start : start + words]).capitalize()

    def _read(self, fact: Fact | None = None) -> None:
        """Read a file, perhaps once more after a change; a fact is a line in the body of one of its functions."""
        path = f"src/{self._random.choice(_THINGS[:6])}.py"
        lines = self._files.get(path, "").splitlines() or list(_functions(self._random))
        if fact:
            lines.insert(self._middle(lines), f"    {fact.name.upper().replace(' ', '_')} = {fact.value}")
        else:
            lines[-1] = f"    return {self._random.randrange(1000)}"
        self._files[path] = "\n".join(lines) + "\n"
        self._call("read_file", self._files[path], path=path)

    def _run(self, fact: Fact | None = None) -> None:
        """Run a command with a long output; a fact is a line in its middle half."""
        lines = [self._log_line(number) for number in range(self._random.randrange(20, 90))]
        if fact:
            lines.insert(self._middle(lines), f"INFO {fact.name} is {fact.value}")
        self._call("run", "\n".join(lines) + "\n", command=f"make check N={self._calls}")

    def _middle(self, lines: list[str]) -> int:
        return self._random.randrange(len(lines) // 4, 3 * len(lines) // 4)

    def _log_line(self, number: int) -> str:
        thing, state = self._random.choice(_THINGS), self._random.choice(_STATES)
        return f"DEBUG {number:04} {thing} {state} in {self._random.randrange(100)} ms"

    def _call(self, tool: str, output: str, **given: str) -> None:
        self._calls += 1
        call = {"id": f"call_{self._calls}", "type": "function"}
        function = {"name": tool, "arguments": json.dumps(given)}
        self.messages.append({"role": "assistant", "content": None, "tool_calls": [call | {"function": function}]})
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})


def _functions(source: random.Random) -> Iterator[str]:
    for number in range(source.randrange(4, 9)):
        yield f"def step_{number}(value: int, other: int = {number}) -> int:"
        for line in range(source.randrange(5, 14)):
            yield f"    value = value * {source.randrange(2, 50)} + other  # {source.choice(_PROSE)} {line}"
        yield "    return value"
        yield ""


def session(seed: int, tokens: int, count: Callable[[list[ChatMessage]], int]) -> Session:
    """A session of at least so many tokens, by ``count``."""
    grown = Session(seed)
    while count(grown.messages) < tokens:
        grown.grow()
    return grown
