"""Clients that behave like people and their programs: in a hurry, long-winded, gone before the answer comes."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from prompts import WORDS
from serving import Server

Body = dict[str, Any]

CHAT, TEXT = "/chat/completions", "/completions"
BUSY = {(429, "queue_full"), (503, "memory_pressure"), (504, "deadline_exceeded")}
"""What a server may say instead of an answer."""
PATIENCE = 300.0
"""Seconds after which an answer will not come any more."""
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
QUESTIONS: tuple[Body, ...] = tuple(
    {
        "messages": [{"role": "user", "content": f"Tell me about {subject}."}],
        "max_tokens": 24,
        "temperature": temperature,
        "seed": 7,
        "ignore_eos": True,
    }
    for subject, temperature in (("rivers", 0.0), ("the sea", 0.8), ("a long walk in the mountains", 1.0))
)
"""Their answers are always the same."""


@dataclass
class Tally:
    """How all requests ended, and what should not have happened."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind of request."""
    problems: list[str] = field(default_factory=list)

    def note(self, kind: str, outcome: str) -> None:
        """One request has ended in a way that is allowed."""
        self.outcomes[kind, outcome] += 1

    def sum(self, outcome: str) -> int:
        """How many requests ended so."""
        return sum(n for (_, ended), n in self.outcomes.items() if ended == outcome)

    def blame(self, kind: str, problem: str) -> None:
        """One has not."""
        self.outcomes[kind, "WRONG"] += 1
        self.problems.append(f"{kind}: {problem}"[:600])


@dataclass
class Leave:
    """When a client hangs up: after so many seconds, or pieces of text."""

    seconds: float = float("inf")
    pieces: float = float("inf")


class HungUpError(Exception):
    """The client has seen enough."""


@dataclass
class Answer:
    """What came, of the first choice, and in all."""

    text: str = ""
    finish: set[str] = field(default_factory=set)
    choices: set[int] = field(default_factory=set)
    logprobs: int = 0
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    error: dict[str, Any] = field(default_factory=dict)

    def take(self, document: dict[str, Any]) -> None:
        """A chunk, or the whole answer."""
        self.error = document.get("error") or self.error
        self.usage = document.get("usage") or self.usage
        for choice in document.get("choices", []):
            self.choices.add(choice["index"])
            if choice.get("finish_reason"):
                self.finish.add(choice["finish_reason"])
            message = choice.get("delta") or choice.get("message") or {}
            self.logprobs += len((choice.get("logprobs") or {}).get("content") or ())
            text = message.get("content") or choice.get("text") or ""
            self.pieces += bool(text)
            self.text += text if choice["index"] == 0 else ""


class Visitor:
    """One client, doing one thing after another; the same things for the same number."""

    def __init__(self, number: int, server: Server, http: httpx2.AsyncClient, tally: Tally) -> None:
        self.random = random.Random(f"visitor {number}")
        self.server = server
        self.http = http
        self.tally = tally
        self.known: list[str] = []
        """The right answers to QUESTIONS, once they are known."""

    async def stay(self, until: float) -> None:
        """Come and go until it is over."""
        behaviours, weights = zip(*BEHAVIOURS, strict=True)
        while time.monotonic() < until:
            await self.random.choices(behaviours, weights)[0](self)
            await asyncio.sleep(self.random.uniform(0, 0.5))

    # --- What they do ------------------------------------------------------------------------------------------------

    async def chats(self) -> None:
        """A short question."""
        await self.ask("short", CHAT, self.question())

    async def reads_out(self) -> None:
        """A long prompt."""
        await self.ask("long", TEXT, self.document())

    async def converses(self) -> None:
        """A conversation that grows."""
        messages: list[dict[str, str]] = []
        for _ in range(self.random.randint(2, 5)):
            messages.append({"role": "user", "content": self.words(20, 150)})
            body = {"messages": messages, "max_tokens": self.random.randint(4, 24), "stream": True}
            answer = await self.ask("conversation", CHAT, body)
            if answer is None or not answer.text:
                return
            messages.append({"role": "assistant", "content": answer.text})

    async def shares(self) -> None:
        """One of a few long system prompts, with a question of its own."""
        system = " ".join(random.Random(self.random.randrange(4)).choices(WORDS, k=400))
        body = self.question()
        body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
        await self.ask("shared prefix", CHAT, body)

    async def hangs_up(self) -> None:
        """Leaves before the answer begins, or while it comes."""
        path, body = self.random.choice([(CHAT, self.question()), (TEXT, self.document())])
        body |= {"max_tokens": 200, "ignore_eos": True, "stream": self.random.random() < 0.7}
        seconds = self.random.choice([0.0, 0.01, self.random.uniform(0.1, 1), self.random.uniform(1, 6)])
        await self.ask("hang-up", path, body, Leave(seconds=seconds))

    async def breaks_off(self) -> None:
        """Leaves in the middle of sending."""
        parts = urlsplit(self.server.url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"POST /v1{CHAT} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 5000\r\n\r\n"
        try:
            writer.write(
                head.encode()[: self.random.randint(1, len(head))] + b'{"messages": [' * self.random.randrange(2)
            )
            with suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(self.random.uniform(0, 0.2))
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        self.tally.note("half a request", "hung up")

    async def wants_much(self) -> None:
        """Asks for all that the context holds, and leaves after some of it."""
        body = {**self.question(), "max_tokens": 8000, "ignore_eos": True, "stream": True}
        await self.ask("large answer", CHAT, body, Leave(pieces=self.random.randint(1, 80)))

    async def wants_one_token(self) -> None:
        """Asks for next to nothing."""
        await self.ask("one token", CHAT, {**self.question(), "max_tokens": 1})

    async def tells_a_story(self) -> None:
        """Has a long answer read out, of which many at once outgrow the memory: some have to make room."""
        body = {**self.question(), "max_tokens": 1500, "ignore_eos": True, "stream": True, "priority": -100}
        body["messages"] = [{"role": "user", "content": self.words(170, 200)}]
        await self.ask("story", CHAT, body)

    async def is_in_a_hurry(self) -> None:
        """Sets a deadline."""
        path, body = self.random.choice([(CHAT, self.question()), (TEXT, self.document())])
        body |= {"timeout": self.random.choice([0.01, 0.5, 2, 8]), "max_tokens": 64}
        await self.ask("deadline", path, body)

    async def ranks(self) -> None:
        """Is more or less important than others."""
        await self.ask("priority", CHAT, {**self.question(), "priority": self.random.randint(-100, 100)})

    async def wants_choices(self) -> None:
        """Asks for several answers at once."""
        wanted = self.random.randint(2, 4)
        answer = await self.ask("choices", CHAT, {**self.question(), "n": wanted})
        if answer and answer.ended and not answer.error and len(answer.choices) != wanted:
            self.tally.blame("choices", f"{len(answer.choices)} choices instead of {wanted}")

    async def wants_logprobs(self) -> None:
        """Asks how likely each token was."""
        body = {**self.question(), "logprobs": True, "top_logprobs": 3, "stream": False}
        answer = await self.ask("logprobs", CHAT, body)
        if answer and answer.usage and answer.logprobs != answer.usage["completion_tokens"]:
            self.tally.blame("logprobs", f"{answer.logprobs} for {answer.usage['completion_tokens']} tokens")

    async def scores(self) -> None:
        """Asks how likely the prompt was."""
        body = {"prompt": self.words(20, 300), "echo": True, "logprobs": 1, "max_tokens": 1}
        await self.ask("scored prompt", TEXT, body)

    async def wants_json(self) -> None:
        """Asks for an object of a given shape."""
        format_ = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
        answer = await self.ask("schema", CHAT, {**self.question(), "response_format": format_, "max_tokens": 80})
        if answer and answer.finish == {"stop"}:
            try:
                found = set(json.loads(answer.text))
            except ValueError:
                found = set()
            if found != {"colour", "count"}:
                self.tally.blame("schema", f"not of the shape: {answer.text!r}")

    async def overflows(self) -> None:
        """More requests at once than the queue holds."""
        bodies = [{**self.question(), "max_tokens": 2} for _ in range(20)]
        await asyncio.gather(*(self.ask("burst", CHAT, body) for body in bodies))

    async def asks_again(self) -> None:
        """A question whose answer is known."""
        which = self.random.randrange(len(QUESTIONS))
        answer = await self.ask("known answer", CHAT, QUESTIONS[which])
        if answer and answer.ended and self.known and answer.text != self.known[which]:
            self.tally.blame("known answer", f"{answer.text!r} instead of {self.known[which]!r}")

    # --- What they say -----------------------------------------------------------------------------------------------

    def words(self, low: int, high: int) -> str:
        """Some words."""
        return " ".join(self.random.choices(WORDS, k=self.random.randint(low, high)))

    def question(self) -> Body:
        """A short prompt."""
        return {
            "messages": [{"role": "user", "content": self.words(3, 60)}],
            "max_tokens": self.random.randint(1, 32),
            "temperature": self.random.choice([0, 0.7, 1]),
            "top_p": self.random.choice([1, 0.9]),
            "seed": self.random.randrange(1000),
            "stream": self.random.random() < 0.5,
        }

    def document(self) -> Body:
        """A long prompt, of up to 3,000 tokens."""
        return {"prompt": self.words(300, 2900), "max_tokens": 8, "stream": self.random.random() < 0.7}

    # --- How they ask ------------------------------------------------------------------------------------------------

    async def ask(self, kind: str, path: str, body: Body, leave: Leave = Leave()) -> Answer | None:  # noqa: B008
        """Send a request and judge how it ends; None unless there was an answer, whole or cut."""
        answer = Answer()
        sent = time.monotonic()
        try:
            async with asyncio.timeout(min(leave.seconds, PATIENCE)):
                status = await self._read(path, body, leave, answer)
        except HungUpError:
            self.tally.note(kind, "hung up")
            return None
        except TimeoutError:
            if leave.seconds < PATIENCE:
                self.tally.note(kind, "hung up")
            else:
                self.tally.blame(kind, f"not answered within {PATIENCE:.0f} s")
            return None
        except httpx2.HTTPError as error:
            self.tally.blame(kind, f"{type(error).__name__} after {time.monotonic() - sent:.1f} s: {error}")
            return None
        return await self._judge(kind, status, answer)

    async def _read(self, path: str, body: Body, leave: Leave, answer: Answer) -> int:
        """Fill the answer as it comes; returns the status."""
        body = {"model": self.server.model, **body}
        async with self.http.stream("POST", f"{self.server.api}{path}", json=body, timeout=None) as response:
            if "event-stream" not in response.headers.get("Content-Type", ""):
                answer.take(json.loads(await response.aread()))
                answer.ended = True
                return response.status_code
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    answer.ended = True
                elif line.startswith("data: "):
                    answer.take(json.loads(line[6:]))
                if answer.pieces >= leave.pieces:
                    raise HungUpError
            return response.status_code

    async def _judge(self, kind: str, status: int, answer: Answer) -> Answer | None:
        code = answer.error.get("code")
        refused = (status, code) in BUSY or (status == 200 and code in {code for _, code in BUSY})
        if refused:
            self.tally.note(kind, str(code))
            # Most programs wait for less time than Retry-After says.
            await asyncio.sleep(self.random.uniform(0.5, 4))
            return None
        if status != 200 or answer.error:
            self.tally.blame(kind, f"{status} {answer.error}")
            return None
        if not answer.ended:
            self.tally.blame(kind, "the stream ended without [DONE]")
            return None
        self.tally.note(kind, "answered")
        return answer


BEHAVIOURS: tuple[tuple[Callable[[Visitor], Awaitable[None]], float], ...] = (
    (Visitor.chats, 5),
    (Visitor.reads_out, 1),
    (Visitor.converses, 2),
    (Visitor.shares, 3),
    (Visitor.hangs_up, 4),
    (Visitor.breaks_off, 1),
    (Visitor.wants_much, 2),
    (Visitor.wants_one_token, 1),
    (Visitor.is_in_a_hurry, 2),
    (Visitor.ranks, 2),
    (Visitor.wants_choices, 1),
    (Visitor.wants_logprobs, 1),
    (Visitor.scores, 0.5),
    (Visitor.wants_json, 1),
    (Visitor.overflows, 0.3),
    (Visitor.asks_again, 2),
)
"""What visitors do, and how often."""
