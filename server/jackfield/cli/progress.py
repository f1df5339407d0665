"""Progress bars on standard error; plain lines where that is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.progress as rp
from rich.console import Console

from jackfield.models.progress import Task

LINE_EVERY_S = 10.0


class RichProgress:
    """Shows the jobs of `jackfield.models`."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Show a job of ``total`` bytes (None: not known) until the context ends."""
        if not sys.stderr.isatty():
            yield _LineTask(description, total)
            return
        with rp.Progress(
            rp.SpinnerColumn(),
            rp.TextColumn("{task.description}"),
            rp.BarColumn(),
            rp.DownloadColumn(),
            rp.TransferSpeedColumn(),
            rp.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as display:
            yield _RichTask(display, display.add_task(description, total=total))


class _RichTask:
    def __init__(self, display: rp.Progress, task: rp.TaskID) -> None:
        self._display = display
        self._task = task

    def advance(self, amount: int) -> None:
        self._display.advance(self._task, amount)

    def expect(self, total: int) -> None:
        self._display.update(self._task, total=total)


class _LineTask:
    """A line at the start and now and then, for logs."""

    def __init__(self, description: str, total: int | None) -> None:
        self._description = description
        self._total = total
        self._done = 0
        self._next = time.monotonic() + LINE_EVERY_S
        self._print(f"{description} ...")

    def advance(self, amount: int) -> None:
        self._done += amount
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY_S
            of = f" of {self._total / 1e6:.0f}" if self._total else ""
            self._print(f"{self._description}: {self._done / 1e6:.0f}{of} MB")

    def expect(self, total: int) -> None:
        self._total = total

    def _print(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
