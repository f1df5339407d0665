"""What is measured: each scenario asks one running server for something and returns one number."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from client import Message, Reply, RequestFailedError, Target, chat
from peers import Running
from prompts import Prompts
from results import Quantity, Sample
from streams import streaming, touching, within

WARM_UP_WORDS = 50
BRIEF = 8
"""Tokens to ask for where only the first text counts: the very first one may be a special token, which has none."""
LONG_TOKENS = 6000
QUIET_PIECES = 64
"""For so many pieces of text in each stream nothing disturbs them."""
BEHIND_S = 0.1
"""So much later comes the short prompt, so that the long one is surely the first."""
TURNS = 6
TURN_TOKENS, TURN_ANSWER_TOKENS = 200, 32

Run = Callable[[Target, Prompts], Awaitable[Sample]]


@dataclass(frozen=True)
class Scenario(Quantity):
    """Something to measure, and how."""

    run: Run


def catalogue(
    new_tokens: int, clients: Sequence[int] = (1, 8, 16), long_tokens: int = LONG_TOKENS
) -> dict[str, Scenario]:
    """Every scenario, by name.

    Args:
        new_tokens: length of an answer, where it matters.
        clients: how many of them ask at the same time, where throughput is measured.
        long_tokens: length of the prompt that comes while others read their answers.
    """
    scenarios = [
        Scenario("ttft_200", "first token, ~200-token prompt", "s", False, first_token(200)),
        Scenario("ttft_700", "first token, ~700-token prompt", "s", False, first_token(700)),
        Scenario("decode", "decoding, 1 client", "tok/s", True, decoding(new_tokens)),
        *(
            Scenario(f"throughput_{n}", f"throughput, {counted(n, 'client')}", "tok/s", True, serving(n, new_tokens))
            for n in clients
        ),
        Scenario("prefix_hit", "first token, known ~1500-token prefix", "s", False, prefix_hit(1500)),
        Scenario("growing_conversation", f"first token, turns 2–{TURNS} of a chat", "s", False, growing_conversation),
        Scenario("short_behind_long", "first token, behind ~2000 tokens", "s", False, short_behind_long(2000)),
        *(
            Scenario(
                name, f"p95 gap beside a long prompt, {counted(n, 'stream')}", "x", False, fairness(n, long_tokens)
            )
            for name, n in (("fairness_1", 1), ("fairness", 4))
        ),
    ]
    return {scenario.name: scenario for scenario in scenarios}


def counted(number: int, noun: str) -> str:
    """``1 client``, ``2 clients``."""
    return f"{number} {noun}{'s'[: number > 1]}"


# --- One request ----------------------------------------------------------------------------------------------------


def first_token(prompt_tokens: int) -> Run:
    """Seconds until the first text of an answer."""

    async def run(target: Target, prompts: Prompts) -> Sample:
        reply = await chat(target, prompts.of(prompt_tokens), BRIEF)
        return Sample(reply.time_to_first_token, {"prompt_tokens": reply.prompt_tokens})

    return run


def decoding(new_tokens: int) -> Run:
    """Tokens a second of one answer, once it has begun."""

    async def run(target: Target, prompts: Prompts) -> Sample:
        reply = await chat(target, prompts.of(60), new_tokens)
        return Sample(reply.decode_rate, {"completion_tokens": reply.completion_tokens})

    return run


# --- Several at once ------------------------------------------------------------------------------------------------


def serving(clients: int, new_tokens: int) -> Run:
    """Tokens a second that several clients get together, waiting for their prompts included."""

    async def run(target: Target, prompts: Prompts) -> Sample:
        tasks = [asyncio.create_task(chat(target, prompts.of(200, client), new_tokens)) for client in range(clients)]
        try:
            return throughput(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    return run


def throughput(replies: Sequence[Reply]) -> Sample:
    """New tokens of all answers over the time from the first request to the end of the last answer."""
    tokens = sum(reply.completion_tokens for reply in replies)
    seconds = max(reply.done for reply in replies) - min(reply.sent for reply in replies)
    waits = sorted(reply.time_to_first_token for reply in replies)
    return Sample(
        tokens / seconds,
        {
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
            "completion_tokens": tokens,
            "seconds": seconds,
            "median_first_token": waits[len(waits) // 2],
            "worst_first_token": waits[-1],
        },
    )


# --- Prompts that begin alike ---------------------------------------------------------------------------------------


def prefix_hit(prefix_tokens: int) -> Run:
    """Seconds until the first text when a system prompt comes a second time, with another question after it."""

    async def run(target: Target, prompts: Prompts) -> Sample:
        cold, warm = [await chat(target, asked_of(prompts, prefix_tokens, n), BRIEF) for n in range(2)]
        return Sample(
            warm.time_to_first_token,
            {
                "cold_first_token": cold.time_to_first_token,
                "prompt_tokens": warm.prompt_tokens,
                "cached_tokens": warm.cached_tokens,
            },
        )

    return run


def asked_of(prompts: Prompts, prefix_tokens: int, question: int) -> list[Message]:
    """A conversation that begins with the same long system prompt, whatever the question."""
    return [
        {"role": "system", "content": prompts.words(prefix_tokens)},
        {"role": "user", "content": prompts.of(60, question)},
    ]


async def growing_conversation(target: Target, prompts: Prompts) -> Sample:
    """Median seconds until the first text of the second and later answers of a conversation."""
    messages: list[Message] = []
    replies: list[Reply] = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": prompts.of(TURN_TOKENS, turn)})
        replies.append(await chat(target, messages, TURN_ANSWER_TOKENS))
        messages.append({"role": "assistant", "content": replies[-1].text})
    waits = [reply.time_to_first_token for reply in replies]
    return Sample(
        median(waits[1:]),
        {
            **{f"turn_{n}_first_token": wait for n, wait in enumerate(waits, 1)},
            "prompt_tokens": replies[-1].prompt_tokens,
            "cached_tokens": replies[-1].cached_tokens,
        },
    )


# --- Who has to wait for whom ---------------------------------------------------------------------------------------


def short_behind_long(long_tokens: int) -> Run:
    """Seconds until the first text of a short prompt's answer, when a long one came just before."""

    async def run(target: Target, prompts: Prompts) -> Sample:
        before = asyncio.create_task(chat(target, prompts.of(long_tokens), BRIEF))
        try:
            await asyncio.sleep(BEHIND_S)
            short = await chat(target, prompts.of(60, 1), BRIEF)
            long = await before
        finally:
            before.cancel()
        return Sample(
            short.time_to_first_token,
            {"long_first_token": long.time_to_first_token, "long_prompt_tokens": long.prompt_tokens},
        )

    return run


def fairness(clients: int, long_tokens: int) -> Run:
    """How many times as long the text of streams is in coming while another client's long prompt is processed.

    The 95th percentile of the time between two pieces of an answer, from sending the long prompt to the first piece of
    its own answer, over the same before it.
    """

    async def run(target: Target, prompts: Prompts) -> Sample:
        async with streaming(target, prompts, clients) as streams:
            quiet = target.clock()
            await streams.progress(QUIET_PIECES)
            long = await chat(target, prompts.of(long_tokens), BRIEF)
            # Whoever still waits for a piece now has waited through the window.
            await streams.progress(1)
        return slowdown(
            within(streams.gaps, quiet, long.sent),
            touching(streams.gaps, long.sent, long.first),
            {
                "long_first_token": long.time_to_first_token,
                "long_prompt_tokens": long.prompt_tokens,
                "answers": sum(map(len, streams.answers)),
            },
        )

    return run


def slowdown(quiet: Sequence[float], during: Sequence[float], details: dict[str, float]) -> Sample:
    """The 95th percentile of some gaps over that of others, in seconds."""
    if not quiet or not during:
        raise RequestFailedError("too few pieces of text to measure")
    return Sample(
        percentile(during, 0.95) / percentile(quiet, 0.95),
        {
            "quiet_median_ms": 1000 * median(quiet),
            "quiet_p95_ms": 1000 * percentile(quiet, 0.95),
            "quiet_worst_ms": 1000 * max(quiet),
            "during_median_ms": 1000 * median(during),
            "during_p95_ms": 1000 * percentile(during, 0.95),
            "during_worst_ms": 1000 * max(during),
            "quiet_gaps": len(quiet),
            "during_gaps": len(during),
            **details,
        },
    )


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of the values that so many of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- Around it ------------------------------------------------------------------------------------------------------


async def warm_up(target: Target) -> int:
    """Let a server do once what it does only once; returns what a template and the instruction cost in tokens."""
    reply = await chat(target, Prompts("warm-up").of(WARM_UP_WORDS), max_tokens=8)
    return reply.prompt_tokens - WARM_UP_WORDS


async def measured(scenario: Scenario, server: Running, others: Sequence[Running], prompts: Prompts) -> Sample:
    """Run a scenario, and note how much processor time this client and the waiting servers took meanwhile."""

    def clocks() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), sum(other.cpu_seconds() for other in others)

    before = clocks()
    sample = await scenario.run(server.target, prompts)
    wall, client, waiting = (now - then for now, then in zip(clocks(), before, strict=True))
    return Sample(sample.value, {**sample.details, "wall_s": wall, "client_cpu_s": client, "waiting_cpu_s": waiting})
