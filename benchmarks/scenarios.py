"""What is measured: each scenario asks one running server for something and returns one number."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from client import Reply, Target, chat
from peers import Running

# Short everyday words, each one token in the usual vocabularies.
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face level
office door health person art war history party result change morning reason research girl guy moment air teacher force
""".split()  # noqa: SIM905
INSTRUCTION = "\n\nTell a very long story in which every one of these words has its place, and do not stop."
WARM_UP_WORDS = 50


@dataclass(frozen=True)
class Prompts:
    """Prompts of a wished length that begin differently every time, so that no prefix cache can help."""

    seed: str
    overhead: int = 0
    """Tokens that the model's chat template and the instruction add."""

    def of(self, tokens: int, client: int = 0) -> str:
        """A prompt of about so many tokens; the same one again for the same seed and client."""
        chosen = random.Random(f"{self.seed} {tokens} {client}")  # noqa: S311
        return " ".join(chosen.choices(WORDS, k=max(1, tokens - self.overhead))) + INSTRUCTION


@dataclass(frozen=True)
class Sample:
    """One measurement: the number that counts, and what else was seen."""

    value: float
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """Something to measure."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    run: Callable[[Target, Prompts], Awaitable[Sample]]


def catalogue(new_tokens: int, clients: Sequence[int] = (1, 8, 16)) -> dict[str, Scenario]:
    """Every scenario, by name, with answers of ``new_tokens`` tokens where the length of the answer matters."""
    scenarios = [
        Scenario("ttft_200", "first token, ~200-token prompt", "s", False, first_token(200)),
        Scenario("ttft_700", "first token, ~700-token prompt", "s", False, first_token(700)),
        Scenario("decode", "decoding, 1 client", "tok/s", True, decoding(new_tokens)),
        *(
            Scenario(f"throughput_{n}", f"throughput, {n} client{'s'[: n > 1]}", "tok/s", True, serving(n, new_tokens))
            for n in clients
        ),
    ]
    return {scenario.name: scenario for scenario in scenarios}


def first_token(prompt_tokens: int) -> Callable[[Target, Prompts], Awaitable[Sample]]:
    """Seconds until the first text of an answer."""

    async def run(target: Target, prompts: Prompts) -> Sample:
        reply = await chat(target, prompts.of(prompt_tokens), max_tokens=2)
        return Sample(reply.time_to_first_token, {"prompt_tokens": reply.prompt_tokens})

    return run


def decoding(new_tokens: int) -> Callable[[Target, Prompts], Awaitable[Sample]]:
    """Tokens a second of one answer, once it has begun."""

    async def run(target: Target, prompts: Prompts) -> Sample:
        reply = await chat(target, prompts.of(60), new_tokens)
        return Sample(reply.decode_rate, {"completion_tokens": reply.completion_tokens})

    return run


def serving(clients: int, new_tokens: int) -> Callable[[Target, Prompts], Awaitable[Sample]]:
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
