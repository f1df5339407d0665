"""Measure Jackfield and other servers side by side, on the same model and the same machine."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

import machine
from client import FAILURES
from command import circumstances, model_folder, reason, run, show_notes
from display import Display, display_for, table
from peers import Peer, PeerError, Running, parse, running
from prompts import Prompts
from results import Results, Sample
from scenarios import LONG_TOKENS, Scenario, catalogue, measured, warm_up

Turn = tuple[int, Scenario, Running, Sequence[Running]]
"""Repeat, what is measured, on which server, and the servers that wait meanwhile."""

EXAMPLES = """
examples:
  python benchmarks/compare.py                            everything, on the starter model
  python benchmarks/compare.py --quick                    a first look, in a few minutes
  python benchmarks/compare.py --model ~/models/Qwen2.5-Coder-7B-Instruct-4bit --json result.json
  python benchmarks/compare.py --scenarios decode,throughput_8 --repeats 5
  python benchmarks/compare.py --scenarios fairness --long-tokens 1000
  python benchmarks/compare.py --servers jackfield --scenarios fairness_1,fairness
  python benchmarks/compare.py --servers jackfield,other=http://127.0.0.1:8080

Exit status: 0 when everything was measured, 1 when a measurement failed, 2 when nothing could be measured, 130 when
interrupted.
"""
SETTLE_S = 0.5
"""Between measurements: the threads of a BLAS spin for a while after their last work, in the way of the next server."""
QUICK = ("ttft_200", "decode", "throughput_1", "throughput_8")


def main() -> int:
    """Run the command line."""
    console = Console()
    options = arguments().parse_args()
    return run(lambda: compare(options, console), console)


def arguments() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="starter", help="a model folder, or a name that Jackfield knows (%(default)s)"
    )
    parser.add_argument(
        "--servers",
        type=servers_option,
        default="jackfield,mlx_lm",
        metavar="NAMES",
        help="the first is compared with the others; NAME=URL is a server that runs already (%(default)s)",
    )
    parser.add_argument(
        "--scenarios", type=scenarios_option, metavar="NAMES", help=f"some of {','.join(catalogue(0))} (all of them)"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="measurements of each kind (3; with --quick 1)")
    parser.add_argument("--tokens", type=int, metavar="N", help="length of an answer (64; with --quick 24)")
    parser.add_argument(
        "--long-tokens",
        type=int,
        default=LONG_TOKENS,
        metavar="N",
        help="length of the prompt that comes while others read their answers (%(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="limit for a request (%(default)g s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements: rough figures")
    return parser


def servers_option(text: str) -> list[Peer]:
    """The peers that --servers names."""
    try:
        return [parse(name) for name in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def scenarios_option(text: str) -> list[str]:
    """The names that --scenarios gives, all of them known."""
    known = catalogue(0)
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"unknown scenario {name!r}: the scenarios are {', '.join(known)}")
    return text.split(",")


async def compare(options: argparse.Namespace, console: Console) -> int:
    """Start the servers, measure them in turns, and show the result."""
    model = model_folder(options.model)
    known = catalogue(options.tokens or (24 if options.quick else 64), long_tokens=options.long_tokens)
    scenarios = [known[name] for name in options.scenarios or (QUICK if options.quick else known)]
    repeats = options.repeats or (1 if options.quick else 3)
    results = Results(scenarios, [peer.name for peer in options.servers])
    display = display_for(console, results, repeats * len(scenarios) * len(results.servers))
    async with AsyncExitStack() as stack:
        stack.enter_context(display.shown())
        servers = [await started(stack, peer, model, options.timeout, display) for peer in options.servers]
        overheads = [await warmed_up(server, display) for server in servers]
        await measure(results, turns(scenarios, servers, repeats), overheads[0], display)
    report = report_on(results, servers, model, repeats)
    show(console, results, report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if results.failures else 0


async def started(stack: AsyncExitStack, peer: Peer, model: Path, limit: float, display: Display) -> Running:
    """A server that runs until the stack is left."""
    display.begin(f"starting {peer.name}")
    return await stack.enter_async_context(running(peer, model, limit))


async def warmed_up(server: Running, display: Display) -> int:
    """Send a first request that counts for nothing; returns the tokens its template adds to a prompt."""
    display.begin(f"warming up {server.name}")
    try:
        return await warm_up(server.target)
    except FAILURES as error:
        raise PeerError(f"{server.name} does not answer: {reason(error)}") from None


async def measure(results: Results, turns: Iterable[Turn], overhead: int, display: Display) -> None:
    """Measure everything, one server at a time, and note what failed."""
    for repeat, scenario, server, others in turns:
        display.begin(f"{server.name}: {scenario.title}" + (f" (repeat {repeat + 1})" if repeat else ""))
        prompts = Prompts(f"{scenario.name} {repeat}", overhead)
        outcome: Sample | str
        await asyncio.sleep(SETTLE_S)
        try:
            outcome = await measured(scenario, server, others, prompts)
        except FAILURES as error:
            outcome = reason(error) + server.ended
        results.add(scenario, server.name, outcome)
        display.end(scenario, server.name, outcome)


def turns(scenarios: Sequence[Scenario], servers: Sequence[Running], repeats: int) -> Iterator[Turn]:
    """Who is measured when: the servers take turns at every scenario, and another one begins at every repeat."""
    for repeat in range(repeats):
        begin = repeat % len(servers)
        for scenario in scenarios:
            for server in (*servers[begin:], *servers[:begin]):
                yield repeat, scenario, server, [other for other in servers if other is not server]


def report_on(results: Results, servers: Sequence[Running], model: Path, repeats: int) -> dict[str, Any]:
    """Everything worth keeping about a run."""
    return {
        **circumstances(model, repeats),
        "servers": {server.name: server.command for server in servers},
        "measured_s": results.total("wall_s"),
        "client_cpu_s": results.total("client_cpu_s"),
        "waiting_cpu_s": results.total("waiting_cpu_s"),
        "scenarios": results.as_json(),
    }


def show(console: Console, results: Results, report: dict[str, Any]) -> None:
    """Print the table, and below it what one has to know to read it."""

    def share(name: str) -> str:
        return f"{report[name] / (report['measured_s'] or 1):.1%}"

    console.print(table(results))
    notes = [
        machine.line(report["machine"]),
        f"model {report['model']}, {report['repeats']} measurement(s) of each kind, the servers in turns",
        *(f"{name}: {command}" for name, command in report["servers"].items()),
        f"{report['measured_s']:.0f} s of measurements, in which this client used {share('client_cpu_s')} of a core "
        f"and the servers that were not being measured {share('waiting_cpu_s')}",
        f"to repeat: {report['command']}",
    ]
    show_notes(console, notes, results.failures)


if __name__ == "__main__":
    sys.exit(main())
