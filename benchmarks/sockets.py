"""Measure what a server without plugins pays for having sockets: the same requests with them and without."""

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

from rich.console import Console
from rich.progress import track
from rich.table import Table
from starlette.applications import Starlette

import machine
from client import chat
from command import circumstances, model_folder, run
from jackfield.models.device import import_mlx_lm, load_blas
from peers import PEERS, running
from scenarios import warm_up

EXAMPLES = """
examples:
  python benchmarks/sockets.py                  against requests to the starter model
  python benchmarks/sockets.py --rounds 40 --json sockets.json

Exit status: 0 when everything was measured, 1 when the sockets cost more than they may, 2 when nothing could be
measured, 130 when interrupted.
"""
TOKENS = 64
REQUESTS = 50
"""In a row, before the other kind of server has its turn."""

LIMIT = 0.01
"""Of a request's time: what the sockets may cost."""

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": TOKENS}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="whose requests it is compared with (default: starter)")
    parser.add_argument("--rounds", type=int, default=20, help=f"of {REQUESTS} requests each way (default: 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def main() -> int:
    """Run the command; returns its exit status."""
    options = arguments().parse_args()
    console = Console()
    return run(lambda: measure(options, console), console)


async def measure(options: argparse.Namespace, console: Console) -> int:
    """Measure, and show it; returns the exit status."""
    folder = model_folder(options.model)
    load_blas()
    import_mlx_lm()
    with TemporaryDirectory() as tokenizer:
        plain, bare = await cpu_seconds(Path(tokenizer), options.rounds)
    cost = median(one - other for one, other in zip(plain, bare, strict=True))
    whole = await request_seconds(folder, "none")
    plugged = await request_seconds(folder, "")
    figures = {
        "with_sockets_ms": median(plain) * 1e3,
        "without_sockets_ms": median(bare) * 1e3,
        "cost_us": cost * 1e6,
        "request_ms": whole * 1e3,
        "share": cost / whole,
        "plugged_request_ms": plugged * 1e3,
    }
    show(figures, console)
    if options.json:
        options.json.write_text(json.dumps(circumstances(folder, options.rounds) | figures, indent=2))
    return 0 if figures["share"] < LIMIT else 1


def show(figures: dict[str, float], console: Console) -> None:
    """The figures as a table."""
    table = Table("", "", title=f"A streamed request of {TOKENS} tokens", title_justify="left", show_header=False)
    table.add_row("the server's own work, with sockets", f"{figures['with_sockets_ms']:.2f} ms")
    table.add_row("without", f"{figures['without_sockets_ms']:.2f} ms")
    table.add_row("so they cost", f"{figures['cost_us']:.0f} µs")
    table.add_row("the whole request, on the model", f"{figures['request_ms']:.0f} ms")
    table.add_row("their share of it", f"{figures['share']:.3%}")
    table.add_row("the whole request, with all plugins that are installed", f"{figures['plugged_request_ms']:.0f} ms")
    console.print(table)
    console.print(machine.line(machine.describe()), style="dim", highlight=False)


async def cpu_seconds(folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds a request, round by round: with sockets, and without."""
    app = scripted(folder)
    ways: tuple[list[float], list[float]] = [], []
    await together(app)
    for _ in track(range(rounds), "Requests", transient=True):
        ways[0].append(await together(app))
        with without_sockets(app):
            ways[1].append(await together(app))
    return ways


def scripted(folder: Path) -> Starlette:
    """The application over an engine that costs next to nothing."""
    from jackfield.app import create_app  # noqa: PLC0415 - these import MLX
    from jackfield.engine.request import CacheUse, FinishEvent, StartEvent  # noqa: PLC0415
    from jackfield.models.registry import Registry, ServedModel  # noqa: PLC0415
    from jackfield.models.tokenizer import Tokenizer  # noqa: PLC0415
    from jackfield.settings import Settings  # noqa: PLC0415
    from jackfield.testing import engine, tokenizer  # noqa: PLC0415

    tokenizer.write(folder)
    said = engine.tokens([65] * TOKENS, -0.1, 0.3)
    script = engine.script(said, StartEvent(0.0, CacheUse()), FinishEvent("length"))
    speaker = cast(Any, engine.ScriptedEngine(lambda _: script))
    model = ServedModel("scripted", Tokenizer(folder), speaker, 4096, tokenizer.VOCABULARY, {})
    return create_app(Settings(), Registry([model]))


@contextmanager
def without_sockets(app: Starlette) -> Iterator[None]:
    """The same application, as it would be if nobody could plug anything in."""
    from jackfield.api import reply  # noqa: PLC0415 - it imports MLX
    from jackfield.exchange import Exchange  # noqa: PLC0415

    class Bare(Exchange):
        @classmethod
        def of(cls, request: Any) -> "Bare":
            request.state.request_id, request.state.identity = "", None
            return cast(Bare, super().of(request))

        def asks(self, asked: Any) -> None:
            self.info = replace(self.info, model=asked.model)

        def station(self, kind: Any, **data: Any) -> None: ...

        def generated(self, choice: int, tokens: Any, *, waited: float, cached: int) -> None: ...

        def _tell(self, kind: str, level: Any, title: str, data: Any) -> None: ...

    middleware, stack = app.user_middleware, app.middleware_stack
    app.user_middleware, app.middleware_stack = [], None
    setattr(reply, "Exchange", Bare)  # noqa: B010 - a name that is not its own
    try:
        yield
    finally:
        app.user_middleware, app.middleware_stack = middleware, stack
        setattr(reply, "Exchange", Exchange)  # noqa: B010


async def together(app: Starlette) -> float:
    """CPU seconds of this process for each of some requests, one after the other."""
    gc.collect()
    gc.disable()
    started = time.process_time()
    try:
        for _ in range(REQUESTS):
            await ask(app)
    finally:
        gc.enable()
    return (time.process_time() - started) / REQUESTS


async def ask(app: Starlette) -> None:
    """One request, without a network between."""
    body = [{"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}]
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            ended.set()

    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        },
        receive,
        send,
    )


async def request_seconds(folder: Path, plugins: str) -> float:
    """How long a request of as many tokens takes on the model, from end to end."""
    jackfield = PEERS["jackfield"]
    peer = replace(jackfield, env={**jackfield.env, "JACKFIELD_PLUGINS": plugins})
    seconds = []
    async with running(peer, folder, 600) as server:
        await warm_up(server.target)
        for number in range(5):
            started = time.perf_counter()
            await chat(server.target, f"Count to one hundred, please. {number}", max_tokens=TOKENS)
            seconds.append(time.perf_counter() - started)
    return median(seconds)


if __name__ == "__main__":
    sys.exit(main())
