"""Where lines go: the standard error, or a file that is rotated and that nobody else can read.

Nothing here is buffered or locked: one thread writes, and when a disk or a pipe hangs, the end of the process does not
have to wait for it, as it would for the standard library's handlers.
"""

import contextlib
import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)

STANDARD_ERROR = 2


class Output:
    """The standard error. When it cannot be written, that is said once, and once more when it can be again."""

    name = "standard error"

    def __init__(self, descriptor: int = STANDARD_ERROR) -> None:
        self._descriptor = descriptor
        self._lost = 0
        self._torn = False
        """Whether the last line was written in part."""

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._descriptor)

    def write(self, line: str) -> None:
        """Write a line; for one thread only."""
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        try:
            self._make_room(len(data))
            self._append(b"\n" + data if self._torn else data)
        except OSError as error:
            if not self._lost:
                logger.error("The log %s cannot be written: %s. Lines are lost.", self.name, error)
            self._lost += 1
        else:
            if self._lost:
                logger.warning("The log %s can be written again; %d lines were lost.", self.name, self._lost)
            self._lost = 0

    def close(self) -> None:
        """Give the file back; the standard error belongs to others."""

    def _make_room(self, size: int) -> None:
        """For so many bytes."""

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
            self._torn = bool(left)


class LogFile(Output):
    """A file that only its owner can read; full ones are kept as ``PATH.1`` (the newest), ``PATH.2`` and so on.

    Args:
        path: of the file; its folder is made if need be.
        max_bytes: when to begin a new one; 0 for never.
        backups: how many full ones are kept.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self._path = path.absolute()
        self._max_bytes = max_bytes
        self._backups = backups
        self._stuck = False
        self.name = str(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(_open(self._path))

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)

    def _make_room(self, size: int) -> None:
        status = os.fstat(self._descriptor)
        full = status.st_size and status.st_size + size > self._max_bytes > 0
        if not full or not stat.S_ISREG(status.st_mode):  # a pipe cannot be rotated
            return
        try:
            self._rotate()
        except OSError as error:
            if not self._stuck:
                logger.error("The log %s cannot be rotated, and grows on: %s", self.name, error)
            self._stuck = True
        else:
            self._stuck = False

    def _rotate(self) -> None:
        for number in range(self._backups - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._backup(number).replace(self._backup(number + 1))
        with contextlib.suppress(FileNotFoundError):  # somebody has moved it away
            self._path.replace(self._backup(1))
        fresh = _open(self._path)
        os.close(self._descriptor)
        self._descriptor = fresh

    def _backup(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):  # and not /dev/stdout, say
        with contextlib.suppress(PermissionError):  # somebody else's file, which they let us write
            os.fchmod(descriptor, 0o600)
    return descriptor
