"""How far a long job has come, for whoever shows it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One job under way."""

    def advance(self, amount: int) -> None:
        """So many bytes more are done."""

    def expect(self, total: int) -> None:
        """The job turns out to be so many bytes in all."""


class Progress(Protocol):
    """Something that shows jobs, such as `jackfield.cli.progress.RichProgress`."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Show a job of ``total`` bytes (None: not known) until the context ends."""
        ...


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass

    def expect(self, total: int) -> None:
        pass


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """A job that nobody watches."""
        yield _SilentTask()


SILENT = SilentProgress()
