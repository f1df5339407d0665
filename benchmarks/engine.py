"""Measure Jackfield's engine on its own: cache on disk, memory, quantized keys and values, fairness, grammars."""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

import machine
from client import FAILURES, Target, chat, get
from command import circumstances, model_folder, reason, run, show_notes
from display import display_for, table
from peers import BIN, PEERS, running
from prompts import Prompts
from results import Quantity, Results, Sample
from scenarios import BRIEF, LONG_TOKENS, asked_of, fairness, warm_up
from streams import Streams, streaming, within

EXAMPLES = """
examples:
  python benchmarks/engine.py                              all parts, on the starter model
  python benchmarks/engine.py --parts disk,memory
  python benchmarks/engine.py --parts fairness --long-tokens 2000 --repeats 3
  python benchmarks/engine.py --model ~/models/Qwen2.5-Coder-7B-Instruct-4bit --json engine.json

Exit status: 0 when everything was measured, 1 when a measurement failed, 2 when nothing could be measured, 130 when
interrupted.
"""
PREFIX_TOKENS = 1500
SHORT_ROWS = 8
DECODERS, DECODED = 8, 64
"""Clients that decode with quantized keys and values, and how many tokens each."""
KV_BITS = {"full": (), "8 bits": ("--kv-bits", "8"), "4 bits": ("--kv-bits", "4")}
SLOWDOWNS = ("1.5", "2", "4")
STORY = {
    "type": "object",
    "properties": {"story": {"type": "string"}, "pages": {"type": "integer"}},
    "required": ["story"],
}
TELL = {"type": "function", "function": {"name": "tell", "description": "Tell a story.", "parameters": STORY}}
FORMS: dict[str, dict[str, Any]] = {
    "free": {},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "story", "schema": STORY}}},
    "regex": {"regex": "([a-z]{1,12} ){4096}"},
    "tools": {"tools": [TELL]},
}
"""What constrains an answer: nothing, a grammar from its first token on, or one that waits for a call to begin."""
NEIGHBOURS = 4
SETTLE_S = 0.5
DISK_BYTES = str(4 * 10**9)

Figure = tuple[str, str, Sample]
"""A number with its place in the part's table: quantity and column."""


@dataclass(frozen=True)
class Bench:
    """How to start the server, and how long the long prompts are."""

    model: Path
    long_tokens: int = LONG_TOKENS
    timeout: float = 1800

    @asynccontextmanager
    async def jackfield(self, *flags: str, **environment: str) -> AsyncIterator[tuple[Target, int]]:
        """A fresh server, warmed up, with the tokens that its template adds to a prompt."""
        peer = PEERS["jackfield"]
        peer = replace(peer, command=(*peer.command, *flags), env={**peer.env, **environment})
        async with running(peer, self.model, self.timeout) as server:
            overhead = await warm_up(server.target)
            await asyncio.sleep(SETTLE_S)
            yield server.target, overhead


@dataclass(frozen=True)
class Part:
    """Some measurements that belong together, and the table they fill."""

    name: str
    title: str
    quantities: tuple[Quantity, ...]
    columns: tuple[str, ...]
    measure: Callable[[Bench, str], AsyncIterator[Figure]]
    """Yields every figure of the table once; the text makes its prompts differ from those of other repeats."""


def parts() -> dict[str, Part]:
    """All parts by name."""
    made = (
        Part(
            "disk",
            f"First token, prefix of {PREFIX_TOKENS} tokens, new question",
            (
                Quantity("cold", "never seen", "s", False),
                Quantity("memory", "prefix in memory", "s", False),
                Quantity("disk", "prefix on disk, after a restart", "s", False),
            ),
            ("jackfield",),
            disk,
        ),
        Part(
            "memory",
            f"Keys and values of a long request beside {SHORT_ROWS} short ones",
            (
                Quantity("alone", "the long one alone", "MB", False),
                Quantity("together", f"with {SHORT_ROWS} short ones", "MB", False),
                Quantity("padded", "if all took as much as the longest", "MB", False),
            ),
            ("jackfield",),
            memory,
        ),
        Part(
            "kv_bits",
            "Quantized keys and values",
            (
                Quantity("token", "a token takes", "kB", False),
                Quantity("decode", f"decoding, {DECODERS} clients", "tok/s", True),
            ),
            tuple(KV_BITS),
            kv_bits,
        ),
        Part(
            "fairness",
            "While a long prompt is processed, by max_slowdown",
            (
                Quantity("gap", "p95 gap between tokens, 4 streams", "x", False),
                Quantity("first_token", "first token of the long prompt", "s", False),
            ),
            SLOWDOWNS,
            slowdowns,
        ),
        Part(
            "grammar",
            "Time between tokens, by what constrains the answer",
            (
                Quantity("own", "one answer alone", "ms", False),
                Quantity("neighbours", f"{NEIGHBOURS} free answers beside {NEIGHBOURS} of this kind", "ms", False),
            ),
            tuple(FORMS),
            grammars,
        ),
    )
    return {part.name: part for part in made}


# --- The parts ------------------------------------------------------------------------------------------------------


async def disk(bench: Bench, seed: str) -> AsyncIterator[Figure]:
    """Ask about the same long text three times, the last one after a restart."""
    with TemporaryDirectory(prefix="jackfield-bench-") as folder:
        kept = {"JACKFIELD_CACHE_DIR": folder, "JACKFIELD_PREFIX_CACHE_DISK_BYTES": DISK_BYTES}
        async with bench.jackfield(**kept) as (target, overhead):
            prompts = Prompts(seed, overhead)
            for question, name in enumerate(("cold", "memory")):
                yield name, "jackfield", await first_token(target, prompts, question)
        async with bench.jackfield(**kept) as (target, _):
            yield "disk", "jackfield", await first_token(target, prompts, 2)


async def first_token(target: Target, prompts: Prompts, question: int) -> Sample:
    """Seconds until the answer to a question about the long text begins."""
    reply = await chat(target, asked_of(prompts, PREFIX_TOKENS, question), BRIEF)
    return Sample(
        reply.time_to_first_token, {"prompt_tokens": reply.prompt_tokens, "cached_tokens": reply.cached_tokens}
    )


async def memory(bench: Bench, seed: str) -> AsyncIterator[Figure]:
    """Look at what the server holds for a long request, and again when short ones have joined it."""
    async with bench.jackfield() as (target, overhead):
        prompts = Prompts(seed, overhead)
        async with streaming(target, prompts, 1, bench.long_tokens):
            alone = await kv_megabytes(target)
            yield "alone", "jackfield", Sample(alone)
            async with streaming(target, prompts, SHORT_ROWS):
                yield "together", "jackfield", Sample(await kv_megabytes(target))
                yield "padded", "jackfield", Sample(alone * (1 + SHORT_ROWS))


async def kv_megabytes(target: Target) -> float:
    """Keys and values that the server holds for requests in work, by its own account."""
    return metric((await get(target, "/metrics")).decode(), "jackfield_kv_cache_bytes") / 1e6


def metric(text: str, name: str) -> float:
    """One series of Prometheus's text format, added up over its labels."""
    lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    if not lines:
        raise ValueError(f"the server has no metric {name}")
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def kv_bits(bench: Bench, seed: str) -> AsyncIterator[Figure]:
    """The size of a token, and how fast several answers come."""
    for column, flags in KV_BITS.items():
        yield "token", column, Sample(await token_kilobytes(bench.model, *flags))
        async with bench.jackfield(*flags) as (target, overhead):
            yield "decode", column, await decoding_together(target, Prompts(seed, overhead))


async def token_kilobytes(model: Path, *flags: str) -> float:
    """What ``jackfield doctor`` says that a token takes."""
    process = await asyncio.create_subprocess_exec(
        f"{BIN}/jackfield", "doctor", str(model), "--json", *flags, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    return float(json.loads(told)["kv_bytes_per_token"]) / 1e3


async def decoding_together(target: Target, prompts: Prompts) -> Sample:
    """Tokens a second of several answers, from when the last one has begun; Jackfield sends each token on its own."""
    async with streaming(target, prompts, DECODERS, 200) as streams:
        before, began = sum(streams.pieces), target.clock()
        await streams.progress(DECODED)
        tokens, seconds = sum(streams.pieces) - before, target.clock() - began
    return Sample(tokens / seconds, {"tokens": tokens, "seconds": seconds})


async def slowdowns(bench: Bench, seed: str) -> AsyncIterator[Figure]:
    """What a long prompt costs those who read their answers, and how long it takes itself."""
    for column in SLOWDOWNS:
        async with bench.jackfield(JACKFIELD_MAX_SLOWDOWN=column) as (target, overhead):
            sample = await fairness(4, bench.long_tokens)(target, Prompts(seed, overhead))
            yield "gap", column, sample
            yield "first_token", column, Sample(sample.details["long_first_token"])


async def grammars(bench: Bench, seed: str) -> AsyncIterator[Figure]:
    """What a grammar costs the answer that it constrains, and those beside it."""
    async with bench.jackfield() as (target, overhead):
        prompts = Prompts(seed, overhead)
        for column, fields in FORMS.items():
            constrained = replace(target, extra={**target.extra, **fields})
            async with streaming(constrained, prompts, 1) as own:
                yield "own", column, await time_between_tokens(own, DECODED * 2)
            async with (
                streaming(constrained, prompts, NEIGHBOURS),
                streaming(target, Prompts(f"{seed} free", overhead), NEIGHBOURS) as free,
            ):
                yield "neighbours", column, await time_between_tokens(free, DECODED)


async def time_between_tokens(streams: Streams, tokens: int) -> Sample:
    """The median over the next tokens, in milliseconds."""
    begun = streams.target.clock()
    await streams.progress(tokens)
    gaps = within(streams.gaps, begun, streams.target.clock())
    return Sample(median(gaps) * 1e3, {"gaps": len(gaps)})


# --- The command ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the command line."""
    console = Console()
    options = arguments().parse_args()
    return run(lambda: measure_parts(options, console), console)


def arguments() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="starter", help="a model folder, or a name that Jackfield knows (%(default)s)"
    )
    parser.add_argument(
        "--parts", type=parts_option, default=",".join(parts()), metavar="NAMES", help="some of %(default)s (all)"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="measurements of each kind (%(default)s)")
    parser.add_argument(
        "--long-tokens", type=int, default=LONG_TOKENS, metavar="N", help="length of a long prompt (%(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="limit for a request (%(default)g s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    return parser


def parts_option(text: str) -> list[Part]:
    """The parts that --parts names."""
    known = parts()
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"unknown part {name!r}: the parts are {', '.join(known)}")
    return [known[name] for name in text.split(",")]


async def measure_parts(options: argparse.Namespace, console: Console) -> int:
    """Measure one part after the other, each with servers of its own, and show the results."""
    bench = Bench(model_folder(options.model), options.long_tokens, options.timeout)
    results = {part.name: await measured(part, bench, options.repeats, console) for part in options.parts}
    report = circumstances(bench.model, options.repeats)
    failures = {place: told for result in results.values() for place, told in result.failures.items()}
    notes = [
        machine.line(report["machine"]),
        f"model {report['model']}, {report['repeats']} measurement(s) of each kind",
        f"to repeat: {report['command']}",
    ]
    show_notes(console, notes, failures)
    if options.json:
        figures: dict[str, Any] = {name: result.as_json() for name, result in results.items()}
        options.json.write_text(json.dumps({**report, "parts": figures}, indent=1) + "\n")
    return 1 if failures else 0


async def measured(part: Part, bench: Bench, repeats: int, console: Console) -> Results:
    """Measure a part and print its table."""
    results = Results(part.quantities, part.columns)
    display = display_for(console, results, repeats * len(part.quantities) * len(part.columns))
    quantities = {quantity.name: quantity for quantity in part.quantities}
    with display.shown():
        for repeat in range(repeats):
            display.begin(part.title + (f" (repeat {repeat + 1})" if repeat else ""))
            try:
                async for name, column, sample in part.measure(bench, f"{part.name} {repeat}"):
                    results.add(quantities[name], column, sample)
                    display.end(quantities[name], column, sample)
            except FAILURES as error:
                results.add(part.quantities[0], part.columns[0], reason(error))
    console.print(f"\n{part.title}", style="bold", highlight=False)
    console.print(table(results))
    return results


if __name__ == "__main__":
    sys.exit(main())
