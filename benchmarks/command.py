"""What the commands here have in common: how they end, where the model comes from, what they say of themselves."""

import asyncio
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import machine
from jackfield import settings
from jackfield.cli.progress import RichProgress
from jackfield.errors import JackfieldError
from jackfield.models.sources import resolve
from peers import PeerError


def run(work: Callable[[], Coroutine[Any, Any, int]], console: Console) -> int:
    """Do the work of a command; returns its exit status."""

    async def until_told() -> int:
        stop_at_sigterm()
        return await work()

    try:
        return asyncio.run(until_told())
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Interrupted; the servers are stopped.")
        return 130
    except PeerError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 2


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


def reason(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {error}".removeprefix("RequestFailedError: ")


def circumstances(model: Path, repeats: int) -> dict[str, Any]:
    """What a report says of its run, besides the figures."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "model": model.name,
        "repeats": repeats,
    }


def show_notes(console: Console, notes: list[str], failures: dict[tuple[str, str], list[str]]) -> None:
    """Print what one has to know to read a table, and what is missing from it."""
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)
    for (quantity, server), reasons in failures.items():
        console.print(f"failed: {server}, {quantity}: {reasons[0]}", style="red", markup=False, highlight=False)
