"""Measure Jackfield and other servers side by side, on the same model and the same machine."""

import argparse
import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import machine
from client import FAILURES
from display import Display, display_for, table
from jackfield import settings
from jackfield.cli.progress import RichProgress
from jackfield.errors import JackfieldError
from jackfield.models.sources import resolve
from peers import Peer, PeerError, Running, parse, running
from results import Results
from scenarios import Prompts, Sample, Scenario, catalogue, measured, warm_up

EXAMPLES = """
examples:
  python benchmarks/compare.py                            everything, on the starter model
  python benchmarks/compare.py --quick                    a first look, in a few minutes
  python benchmarks/compare.py --model ~/models/Qwen2.5-Coder-7B-Instruct-4bit --json result.json
  python benchmarks/compare.py --scenarios decode,throughput_8 --repeats 5
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
    try:
        return asyncio.run(compare(options, model_folder(options.model), console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Interrupted; the servers are stopped.")
        return 130
    except PeerError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 2


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


async def compare(options: argparse.Namespace, model: Path, console: Console) -> int:
    """Start the servers, measure them in turns, and show the result."""
    stop_at_sigterm()
    known = catalogue(options.tokens or (24 if options.quick else 64))
    names = options.scenarios or (QUICK if options.quick else known)
    repeats = options.repeats or (1 if options.quick else 3)
    results = Results([known[name] for name in names], [peer.name for peer in options.servers])
    display = display_for(console, results, repeats * len(results.scenarios) * len(results.servers))
    async with AsyncExitStack() as stack:
        stack.enter_context(display.shown())
        servers = [await started(stack, peer, model, options.timeout, display) for peer in options.servers]
        overheads = [await warmed_up(server, display) for server in servers]
        await measure(results, servers, repeats, overheads[0], display)
    report = report_on(results, servers, model, repeats)
    show(console, results, report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if results.failures else 0


def stop_at_sigterm() -> None:
    """Let SIGTERM end this task as Ctrl-C does, so that the servers are stopped."""
    task = asyncio.current_task()
    if task:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def model_folder(name: str) -> Path:
    """The folder that every server is started with, fetched first if need be."""
    try:
        return resolve(name, cache=settings.load({}).cache_dir, progress=RichProgress()).resolve()
    except JackfieldError as error:
        raise PeerError("\n".join((error.message, *error.suggestions))) from None


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


async def measure(results: Results, servers: Sequence[Running], repeats: int, overhead: int, display: Display) -> None:
    """Measure everything, one server at a time, and note what failed."""
    for repeat, scenario, server in turns(results.scenarios, servers, repeats):
        display.begin(f"{server.name}: {scenario.title}" + (f" ({repeat + 1} of {repeats})" if repeats > 1 else ""))
        prompts = Prompts(f"{scenario.name} {repeat}", overhead)
        outcome: Sample | str
        await asyncio.sleep(SETTLE_S)
        try:
            outcome = await measured(scenario, server, [other for other in servers if other is not server], prompts)
        except FAILURES as error:
            outcome = reason(error) + server.ended
        results.add(scenario, server.name, outcome)
        display.end(scenario, server.name, outcome)


def turns(
    scenarios: Sequence[Scenario], servers: Sequence[Running], repeats: int
) -> Iterator[tuple[int, Scenario, Running]]:
    """Who is measured when: the servers take turns at every scenario, and another one begins at every repeat."""
    for repeat in range(repeats):
        begin = repeat % len(servers)
        for scenario in scenarios:
            for server in (*servers[begin:], *servers[:begin]):
                yield repeat, scenario, server


def reason(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {error}".removeprefix("RequestFailedError: ")


def report_on(results: Results, servers: Sequence[Running], model: Path, repeats: int) -> dict[str, Any]:
    """Everything worth keeping about a run."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "model": model.name,
        "repeats": repeats,
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
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)
    for (scenario, server), reasons in results.failures.items():
        console.print(f"failed: {server}, {scenario}: {reasons[0]}", style="red", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
