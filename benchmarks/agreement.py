"""Measure how far a model's answers depend on company, slices and caches: in log probabilities, and in tokens.

Answers are generated in a batch at temperature 1. Then the same tokens are run through the model again: as a whole
without anybody else (which is what all others are compared with), in slices, after a prompt from the prefix cache, and
token by token alone. At every position of an answer, all these would choose the same token but for rounding.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

import machine
from jackfield import settings
from jackfield.cli.progress import RichProgress
from jackfield.models.device import detect_device, load_blas
from jackfield.models.sources import resolve
from jackfield.models.tokenizer import Tokenizer
from prompts import Prompts

BLAS = load_blas()  # before MLX

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from jackfield.engine.prefix_cache import PrefixCache  # noqa: E402
from jackfield.engine.request import SamplingParameters  # noqa: E402
from jackfield.engine.runner import Cache, Runner  # noqa: E402
from jackfield.engine.sampling import Sampler  # noqa: E402
from jackfield.models import cpu  # noqa: E402
from jackfield.models.loading import load_network  # noqa: E402
from ties import candidates  # noqa: E402

EXAMPLES = """
examples:
  python benchmarks/agreement.py                     the starter model: 7,680 positions, some 15 minutes on two cores
  python benchmarks/agreement.py --rounds 1          a first look
  python benchmarks/agreement.py --kv-bits 8         with quantized keys and values
"""
LENGTHS = range(48, 208, 5)
"""Of prompts, in tokens."""
GREEDY = SamplingParameters(temperature=0)
KINDS = {
    "greedy": GREEDY,
    "temperature 1": SamplingParameters(),
    "temperature 1, top-p 0.9": SamplingParameters(top_p=0.9),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its answer, with the logits that each of the answer's tokens was sampled from."""

    tokens: list[int]
    start: int
    """Of the answer."""
    logits: mx.array
    """[tokens of the answer, vocabulary]"""

    @property
    def seen(self) -> list[int]:
        """All but the last token, which no logits come after."""
        return self.tokens[:-1]


@dataclass(slots=True)
class Agreement:
    """How one way to compute logits compares with the reference."""

    farthest: list[float] = field(default_factory=list)
    """By position: the largest difference of a log probability, over the whole vocabulary."""
    differing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """Positions where another token comes out, by how it is chosen."""

    def add(self, found: "Reading", reference: "Reading") -> None:
        """Compare two readings of the same answer."""
        self.farthest += np.array(mx.max(mx.abs(found.logprobs - reference.logprobs), axis=-1)).tolist()
        for kind, tokens in found.tokens.items():
            self.differing[kind] += int(np.count_nonzero(np.array(tokens != reference.tokens[kind])))


class Reading:
    """What comes of logits [positions, vocabulary] at the positions of an answer."""

    def __init__(self, logits: mx.array) -> None:
        self.logits = logits
        self.logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        positions = range(len(logits))
        self.tokens = {kind: Sampler([one] * len(logits))(logits, positions) for kind, one in KINDS.items()}
        mx.eval(self.logprobs, *self.tokens.values())


# --- Ways to compute the same logits ---------------------------------------------------------------------------------


def generate(runner: Runner, prompts: Sequence[list[int]], count: int) -> list[Row]:
    """Answers of ``count`` tokens, all in one batch."""
    batch, rows, steps = runner.batch(), [list(prompt) for prompt in prompts], []
    for prompt in prompts:
        caches = runner.start()
        runner.prefill(caches, prompt[:-1])
        batch.join(caches, len(prompt) - 1)
    sampler = Sampler([SamplingParameters(seed=seed) for seed, _ in enumerate(prompts)])
    for position in range(count):
        steps.append(runner.decode(mx.array([row[-1] for row in rows]), batch).astype(mx.float32))
        for row, token in zip(rows, np.array(sampler(steps[-1], [position] * len(rows))).tolist(), strict=True):
            row.append(token)
    return [
        Row(tokens, len(prompt), mx.stack([step[row] for step in steps]))
        for row, (tokens, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]


def whole(runner: Runner, row: Row) -> mx.array:
    """In one go."""
    return _read(runner, runner.start(), row.seen, [len(row.seen)])[row.start - 1 :]


def sliced(runner: Runner, row: Row, size: int) -> mx.array:
    """In slices of ``size`` tokens."""
    sizes = [size] * (len(row.seen) // size + 1)
    return _read(runner, runner.start(), row.seen, sizes)[row.start - 1 :]


def alone(runner: Runner, row: Row) -> mx.array:
    """The answer token by token, in a batch of one."""
    batch, caches = runner.batch(), runner.start()
    runner.prefill(caches, row.tokens[: row.start - 1])
    batch.join(caches, row.start - 1)
    return mx.concatenate([runner.decode(mx.array([token]), batch) for token in row.tokens[row.start - 1 : -1]])


def cached(runner: Runner, row: Row) -> mx.array:
    """After as much of the prompt as the prefix cache has once another request has read it."""
    cache, caches = PrefixCache(1 << 30), runner.start()
    prompt = row.tokens[: row.start - 1]
    runner.prefill(caches, prompt)
    cache.store(prompt, caches)
    caches = runner.start()
    use = cache.lookup(tuple(prompt)).restore(caches)
    rest = row.seen[use.tokens :]
    return _read(runner, caches, rest, [len(rest)])[row.start - 1 - use.tokens :]


def _read(runner: Runner, caches: list[Cache], tokens: list[int], sizes: Sequence[int]) -> mx.array:
    """Logits after each token."""
    parts, start = [], 0
    for size in sizes:
        if start < len(tokens):
            parts.append(runner.model(mx.array([tokens[start : start + size]]), cache=caches)[0])
            mx.eval(parts)
        start += size
    return mx.concatenate(parts).astype(mx.float32)


# --- The command line ------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the command line."""
    options, console = arguments().parse_args(), Console()
    runner, tokenizer = load(options, console)
    ways = {f"slices of {size}": partial(sliced, size=size) for size in options.slices} | {"cached prompt": cached}
    agreements = {name: Agreement() for name in (f"batch of {options.rows}", *ways, "alone")}
    ties = dict.fromkeys(KINDS, 0)
    for number in range(options.rounds):
        with console.status(f"Round {number + 1} of {options.rounds} ..."):
            rows = generate(runner, list(prompts(tokenizer, options.rows, number)), options.tokens)
            for index, row in enumerate(rows):
                reference = Reading(whole(runner, row))
                agreements[f"batch of {options.rows}"].add(Reading(row.logits), reference)
                for name, way in ways.items():
                    agreements[name].add(Reading(way(runner, row)), reference)
                if index < options.alone:
                    agreements["alone"].add(Reading(alone(runner, row)), reference)
                    count_ties(ties, reference.logits, options.tolerance)
    show(console, agreements, ties, options)


def arguments() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="a model folder, or a name that Jackfield knows")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="batches to generate (%(default)s)")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="answers in a batch (%(default)s)")
    parser.add_argument("--tokens", type=int, default=80, metavar="N", help="length of an answer (%(default)s)")
    parser.add_argument("--slices", type=int, nargs="+", default=[64], metavar="N", help="sizes of slices (64)")
    parser.add_argument("--alone", type=int, default=2, metavar="N", help="of a batch, token by token (%(default)s)")
    parser.add_argument("--kv-bits", type=int, choices=(4, 8), help="quantize keys and values")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="what counts as a tie (%(default)g)")
    return parser


def load(options: argparse.Namespace, console: Console) -> tuple[Runner, Tokenizer]:
    """The model and its tokenizer."""
    folder = resolve(options.model, cache=settings.load({}).cache_dir, progress=RichProgress())
    network = load_network(Path(folder), detect_device(BLAS), prepare=cpu.prepare)
    console.print(f"{options.model}, {network.dtype}, {machine.line(machine.describe())}", highlight=False)
    return Runner(network.model, kv_bits=options.kv_bits), Tokenizer(folder)


def prompts(tokenizer: Tokenizer, rows: int, number: int) -> Iterator[list[int]]:
    """One conversation a row, of many lengths."""
    for row in range(rows):
        content = Prompts(f"agreement {number}").of(LENGTHS[row % len(LENGTHS)], row)
        yield tokenizer.encode(tokenizer.render([{"role": "user", "content": content}], [], {}), special=False)


def count_ties(ties: dict[str, int], logits: mx.array, tolerance: float) -> None:
    """Positions where more than one token may be chosen."""
    for position, one in enumerate(np.array(logits, np.float64)):
        for name, sampling in KINDS.items():
            ties[name] += len(candidates(one, replace(sampling, seed=position), position, tolerance)) > 1


def show(console: Console, agreements: dict[str, Agreement], ties: dict[str, int], options: argparse.Namespace) -> None:
    """What came out."""
    table = Table("against the whole, alone", "positions", "median", "p99.9", "max", *KINDS)
    for name, one in agreements.items():
        if one.farthest:
            figures = (*np.quantile(one.farthest, [0.5, 0.999]), max(one.farthest))
            table.add_row(
                name, str(len(one.farthest)), *(f"{x:.1e}" for x in figures), *map(str, one.differing.values())
            )
    console.print("Largest difference of a log probability at a position; and positions where another token comes out:")
    console.print(table)
    positions = options.rounds * options.alone * options.tokens
    for name, count in ties.items():
        console.print(f"{name}: {count} of {positions} positions are ties within {options.tolerance:g}")


if __name__ == "__main__":
    main()
