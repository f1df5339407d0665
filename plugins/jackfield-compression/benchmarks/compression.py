"""What is left of long conversations, how much of the prefix cache goes on being used, and how long it takes.

    python plugins/jackfield-compression/benchmarks/compression.py [--json FILE]

No answers are generated: facts count as kept when their text is in the messages that the model would get. Prompts are
made and counted with the starter's tokenizer and chat template, and compared in blocks as the prefix cache does it.
Times are of the CPU, so that what else the machine does is not in them. Summaries are written by a server that runs
elsewhere, whose address --server takes; without it they are not measured.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from coding_sessions import KINDS, Fact, Session, session

from jackfield.engine.blocks import BLOCK_TOKENS
from jackfield.hooks import ChatMessage, JsonObject
from jackfield.models.sources import resolve
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield_compression import Plugin, Settings
from jackfield_compression.sizes import SizeCache, Sizes

DECILES = 10
PLAIN = "plain sliding window"
STRATEGIES: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "window": ("window",),
    "extractive": ("extractive",),
    "extractive, window": ("extractive", "window"),
}

SUMMARY: dict[str, tuple[str, ...]] = {"window, summary": ("window", "summary")}

Shorten = Callable[[Sequence[ChatMessage]], Sequence[ChatMessage]]


class Prompts:
    """Prompts as the server makes them of conversations, for the starter."""

    def __init__(self, cache: Path) -> None:
        self._tokenizer = Tokenizer(resolve("starter", cache=cache))

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return self._tokenizer.encode(text, special=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text."""
        return self._tokenizer.decode(tokens, special=True)

    def ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a conversation."""
        asked = ChatCompletionRequest.model_validate({"model": "starter", "messages": list(messages)})
        return chat_prompt(asked, self._tokenizer).tokens

    def count(self, messages: Sequence[ChatMessage], tools: Sequence[JsonObject] = ()) -> int:
        """Its tokens."""
        return len(self.ids(messages))


@dataclass
class Host:
    """As much of the server as the plugin needs here."""

    url: str = ""
    data_dir: Path | None = None

    async def complete(
        self, messages: Sequence[ChatMessage], *, model: str | None = None, max_tokens: int = 256
    ) -> str:
        """What the model of the server at ``url`` answers."""
        body = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        async with httpx2.AsyncClient(timeout=600) as client:
            answer = (await client.post(f"{self.url}/v1/chat/completions", json=body)).raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])


def shortener(strategy: tuple[str, ...], prompts: Prompts, budget: int, url: str) -> Shorten:
    """Makes conversations shorter as a server does that was just started."""
    if not strategy:
        return sliding_window(prompts, budget)
    plugin = Plugin()
    settings = Settings(strategy=strategy, summary_seconds=600, remember_on_disk=False)  # type: ignore[arg-type]
    plugin.startup(Host(url), settings)  # type: ignore[arg-type]

    def shorten(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
        found = asyncio.run(plugin.compress_context(messages, [], prompts, budget, "starter"))
        return found.messages if found else messages

    return shorten


def sliding_window(prompts: Prompts, budget: int) -> Shorten:
    """What this is compared with: every turn, the latest messages that fit."""
    sizes = Sizes(prompts, "starter", SizeCache())

    def shorten(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
        room = int(0.97 * budget) - sizes.around(messages[:1], ())
        start = len(messages)
        while start > 1 and (room := room - sizes.of(messages[start - 1])) >= 0:
            start -= 1
        while messages[start]["role"] == "tool":
            start += 1
        return [messages[0], *messages[start:]]

    return shorten


# ------------------------------------------------------------------------------------------ what is kept


@dataclass
class Kept:
    """Facts that are still there, of how many."""

    kept: int = 0
    of: int = 0

    def add(self, there: bool) -> None:
        """Count one."""
        self.kept += there
        self.of += 1

    @property
    def share(self) -> float | None:
        """From 0 to 1; None of nothing."""
        return round(self.kept / self.of, 3) if self.of else None


@dataclass
class AtOnce:
    """Conversations that arrive as a whole, each with a question about one fact at its end."""

    asked: list[Kept] = field(default_factory=lambda: [Kept() for _ in range(DECILES)])
    not_asked: list[Kept] = field(default_factory=lambda: [Kept() for _ in range(DECILES)])
    kinds: dict[str, Kept] = field(default_factory=lambda: defaultdict(Kept))
    tokens: list[int] = field(default_factory=list)
    over: int = 0
    """How many are too long even so."""
    milliseconds: list[float] = field(default_factory=list)

    def ask(self, grown: Session, fact: Fact, shorten: Shorten, prompts: Prompts, budget: int) -> None:
        """Ask about one fact."""
        messages = [*grown.messages, {"role": "user", "content": fact.question}]
        started = time.process_time()
        short = shorten(messages)
        self.milliseconds.append(1000 * (time.process_time() - started))
        tokens, text = prompts.count(short), text_of(short)
        self.tokens.append(tokens)
        self.over += tokens > budget
        for other in grown.facts:
            counted = self.asked if other is fact else self.not_asked
            counted[depth(grown, other)].add(other.value in text)
        self.kinds[fact.kind].add(fact.value in text)

    def result(self) -> JsonObject:
        """The figures."""
        return {
            "asked": [one.share for one in self.asked],
            "asked_all": total(self.asked).share,
            "asked_by_kind": {kind: self.kinds[kind].share for kind in KINDS},
            "not_asked": [one.share for one in self.not_asked],
            "not_asked_all": total(self.not_asked).share,
            "tokens_after": round(statistics.mean(self.tokens)),
            "still_too_long": self.over,
            "requests": len(self.tokens),
            "milliseconds": spread(self.milliseconds),
        }


@dataclass
class Growing:
    """Conversations that grow turn by turn, as long as they are too long."""

    requests: int = 0
    over: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    compressions: int = 0
    """Turns whose prompt does not begin as the one before."""
    asked: Kept = field(default_factory=Kept)
    milliseconds: list[float] = field(default_factory=list)

    def follow(self, grown: Session, shorten: Shorten, prompts: Prompts, budget: int) -> None:
        """Ask at every point where the model is asked."""
        before: list[int] = []
        for end in requests(grown.messages):
            messages = grown.messages[:end]
            prompt = prompts.ids(messages)
            if len(prompt) > budget:
                prompt = self._shortened(messages, shorten, prompts, before, grown)
                self.over += len(prompt) > budget
            before = prompt

    def _shortened(
        self, messages: Sequence[ChatMessage], shorten: Shorten, prompts: Prompts, before: list[int], grown: Session
    ) -> list[int]:
        started = time.process_time()
        short = shorten(messages)
        self.milliseconds.append(1000 * (time.process_time() - started))
        prompt = prompts.ids(short)
        shared = common(before, prompt)
        self.requests += 1
        self.prompt_tokens += len(prompt)
        self.shared_tokens += shared
        # The answer's beginning, which ends every prompt, is not part of the next one.
        self.compressions += shared < len(before) - 2 * BLOCK_TOKENS
        fact = grown.asked.get(len(messages) - 1)
        if fact is not None:
            self.asked.add(fact.value in text_of(short))
        return prompt

    def result(self) -> JsonObject:
        """The figures."""
        reread = self.prompt_tokens - self.shared_tokens
        return {
            "requests": self.requests,
            "still_too_long": self.over,
            "prompt_tokens": round(self.prompt_tokens / self.requests),
            "reread_tokens": round(reread / self.requests),
            "cache_hits": round(self.shared_tokens / self.prompt_tokens, 3),
            "prefix_lost": self.compressions,
            "asked_all": self.asked.share,
            "asked": self.asked.of,
            "milliseconds": spread(self.milliseconds),
        }


def requests(messages: Sequence[ChatMessage]) -> Iterator[int]:
    """How long the conversation was each time that the model was asked."""
    return (index for index, message in enumerate(messages) if message["role"] == "assistant")


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens in the whole blocks that two prompts begin with alike."""
    blocks = min(len(one), len(other)) // BLOCK_TOKENS
    for block in range(blocks):
        span = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        if one[span] != other[span]:
            return block * BLOCK_TOKENS
    return blocks * BLOCK_TOKENS


def text_of(messages: Sequence[ChatMessage]) -> str:
    """All that is in a conversation."""
    return json.dumps(list(messages), ensure_ascii=False)


def depth(grown: Session, fact: Fact) -> int:
    """The tenth of the conversation, by messages, that a fact stands in: 0 is the oldest."""
    return fact.message * DECILES // len(grown.messages)


def total(counted: Sequence[Kept]) -> Kept:
    """All of them together."""
    return Kept(sum(one.kept for one in counted), sum(one.of for one in counted))


def spread(milliseconds: Sequence[float]) -> JsonObject:
    """Median and maximum, of CPU time."""
    return {"median": round(statistics.median(milliseconds), 1), "max": round(max(milliseconds), 1)}


# ------------------------------------------------------------------------------------------ all of it


def measure(
    sessions: Sequence[Session], strategy: tuple[str, ...], prompts: Prompts, given: argparse.Namespace
) -> JsonObject:
    """The figures of one strategy."""
    once, growing = AtOnce(), Growing()
    for grown in sessions:
        for number in range(given.asked):
            fact = grown.facts[(2 * number + 1) * len(grown.facts) // (2 * given.asked)]
            once.ask(grown, fact, shortener(strategy, prompts, given.budget, given.server), prompts, given.budget)
        growing.follow(grown, shortener(strategy, prompts, given.budget, given.server), prompts, given.budget)
    return {"at_once": once.result(), "growing": growing.result()}


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--budget", type=int, default=8192, help="tokens (default %(default)s)")
    made.add_argument("--factors", type=int, nargs="+", default=[2, 4], help="lengths, in budgets (default 2 4)")
    made.add_argument("--seeds", type=int, default=5, help="conversations of each length (default %(default)s)")
    made.add_argument("--asked", type=int, default=10, help="facts to ask for in each (default %(default)s)")
    made.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "jackfield", help="where the starter is")
    made.add_argument("--server", default="", help="of a running Jackfield with the starter, to measure summaries")
    made.add_argument("--json", type=Path, help="write the figures there")
    return made


def main() -> None:
    """Measure and print."""
    given = parser().parse_args()
    prompts, results = Prompts(given.cache), {}
    for factor in given.factors:
        print(f"\nConversations of {factor} times {given.budget} tokens")
        sessions = [session(seed, factor * given.budget, prompts.count) for seed in range(given.seeds)]
        for name, strategy in (STRATEGIES | (SUMMARY if given.server else {})).items():
            results[f"{factor}x, {name}"] = result = measure(sessions, strategy, prompts, given)
            show(name, result)
    if given.json:
        given.json.write_text(json.dumps({"settings": _plain(vars(given)), "results": results}, indent=2))


def show(name: str, result: JsonObject) -> None:
    """Print the figures of one strategy."""
    once, growing = result["at_once"], result["growing"]
    print(f"\n{name}")
    for what in ("asked", "not_asked"):
        print(f"  {what:10} {percent(once[what + '_all'])} by depth: {' '.join(map(percent, once[what]))}")
    print(f"  asked in   {' '.join(f'{kind} {percent(share)}' for kind, share in once['asked_by_kind'].items())}")
    print(f"  at once    {once['tokens_after']} tokens, {once['still_too_long']} too long, {once['milliseconds']} ms")
    print(f"  growing    {growing}")


def percent(share: float | None) -> str:
    """As a person reads it."""
    return "  - " if share is None else f"{share:4.0%}"


def _plain(values: dict[str, Any]) -> JsonObject:
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


if __name__ == "__main__":
    main()
