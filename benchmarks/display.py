"""What a person sees: a table that fills in while they wait, or plain lines where nobody watches."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from results import Quantity, Results, Sample


class Display(Protocol):
    """Told what is going on."""

    def shown(self) -> AbstractContextManager[object]:
        """Show things while this is entered."""

    def begin(self, what: str) -> None:
        """Something that takes a while begins."""

    def end(self, quantity: Quantity, server: str, outcome: Sample | str) -> None:
        """One measurement has ended."""


def display_for(console: Console, results: Results, steps: int) -> Display:
    """The live table on a terminal, else lines."""
    return LiveDisplay(console, results, steps) if console.is_terminal else Lines(console)


class LiveDisplay:
    """The table so far, with what is being measured and for how long below it."""

    def __init__(self, console: Console, results: Results, steps: int) -> None:
        self.results = results
        self.progress = Progress(
            SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        )
        self.task = self.progress.add_task("", total=steps)
        # Twice a second: the display shares its cores with the servers.
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=True)

    def render(self) -> Group:
        """The screen of this moment."""
        return Group(table(self.results), self.progress)

    def shown(self) -> AbstractContextManager[object]:
        """Show the screen."""
        return self.live

    def begin(self, what: str) -> None:
        """Say what is being done."""
        self.progress.update(self.task, description=what)

    def end(self, quantity: Quantity, server: str, outcome: Sample | str) -> None:
        """Count it; the table reads the results itself."""
        self.progress.advance(self.task)


class Lines:
    """A line for each measurement."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()

    def shown(self) -> AbstractContextManager[object]:
        """Nothing to keep on the screen."""
        return nullcontext()

    def begin(self, what: str) -> None:
        """Say what is being done."""
        self.console.print(f"{time.monotonic() - self.began:7.0f} s  {what} ...", highlight=False)

    def end(self, quantity: Quantity, server: str, outcome: Sample | str) -> None:
        """Say how it went."""
        told = outcome if isinstance(outcome, str) else figure(outcome.value, quantity.unit)
        self.console.print(f"{'':9}   {server}, {quantity.title}: {told}", highlight=False)


def table(results: Results) -> Table:
    """A row for each quantity, a column for each server, then how the first compares with the others."""
    first, *others = results.servers
    made = Table(title="median (lowest–highest)", title_justify="left", title_style="dim")
    made.add_column("", no_wrap=True)
    for name in results.servers:
        made.add_column(name, justify="right")
    for name in others:
        made.add_column(f"{first} against {name}", justify="right", style="bold")
    for quantity in results.quantities:
        cells = [cell(results, quantity, name) for name in results.servers]
        made.add_row(quantity.title, *cells, *(comparison(results.ratio(quantity, name)) for name in others))
    return made


def cell(results: Results, quantity: Quantity, server: str) -> str:
    """One server's figure for one quantity."""
    failed = " [red]failed[/]" if results.failures.get((quantity.name, server)) else ""
    summary = results.summary(quantity, server)
    if summary is None:
        return failed.strip()
    spread = f" ({number(summary.low)}–{number(summary.high)})" if summary.low < summary.high else ""
    return figure(summary.median, quantity.unit) + spread + failed


def comparison(ratio: float | None) -> str:
    """A ratio in words."""
    if ratio is None:
        return ""
    return f"{number(ratio)}× better" if ratio >= 1 else f"{number(1 / ratio)}× worse"


def figure(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{number(value)} {unit}"


def number(value: float) -> str:
    """Three digits that matter, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
