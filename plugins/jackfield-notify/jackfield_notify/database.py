"""The file that remembers: SQLite, for all threads, and for commands while a server runs."""

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jackfield.errors import ConfigurationError

logger = logging.getLogger(__name__)

VERSION = 1
BUSY_SECONDS = 2.0
"""How long to wait while another process writes."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id TEXT PRIMARY KEY,
    target TEXT NOT NULL,
    address TEXT NOT NULL,
    notification TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'in_flight', 'delivered', 'dead')),
    created REAL NOT NULL,
    due REAL NOT NULL,
    expires REAL NOT NULL,
    attempts INTEGER NOT NULL,
    finished REAL,
    error TEXT
);
CREATE INDEX IF NOT EXISTS messages_due ON messages (target, state, due);
CREATE INDEX IF NOT EXISTS messages_finished ON messages (state, finished);
CREATE TABLE IF NOT EXISTS devices (
    target TEXT NOT NULL,
    token TEXT NOT NULL,
    name TEXT NOT NULL,
    registered REAL NOT NULL,
    PRIMARY KEY (target, token)
);
"""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StorageError(Exception):
    """It cannot be read or written now: the disk is full, or another process holds it."""


class Database:
    """One file, opened once, its owner's alone to read.

    Args:
        file: where it is or will be. One that is damaged is moved aside, and a new one begun.

    Raises:
        ConfigurationError: it cannot be opened, or a newer version has made it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        try:
            self._connected()
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"The outbox {file} cannot be opened: {error}.",
                suggestions=("Make room on the disk.", "Make its folder writable, or set JACKFIELD_DATA_DIR."),
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done with the connection, or nothing of it.

        Raises:
            StorageError: nothing of it.
        """
        with self._lock:
            try:
                connection = self._connected()
                with _all_or_nothing(connection):
                    yield connection
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, sqlite3.Error) and _is_damaged(error):
                    self.close()  # it is replaced the next time
                raise StorageError(str(error)) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection:
                self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_damaged(error):
                    raise
                self._move_aside()
                self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        self.file.touch(mode=0o600)
        self.file.chmod(0o600)  # the files beside it take its mode
        connection = sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise _damage()
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise ConfigurationError(
                f"A newer version of jackfield-notify has made {self.file}.",
                suggestions=("Update jackfield-notify.", "Move that file away, and begin a new one."),
            )
        connection.executescript(_SCHEMA)
        if version < VERSION:
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _move_aside(self) -> None:
        aside = self.file.with_name(f"{self.file.name}.damaged-{time.time_ns()}")
        self.file.rename(aside)
        for suffix in ("-wal", "-shm"):
            companion = self.file.with_name(self.file.name + suffix)
            if companion.exists():
                companion.rename(f"{aside}{suffix}")
        logger.error("The outbox was damaged: it was moved to %s, and a new one is begun. Messages may be lost.", aside)


@contextmanager
def _all_or_nothing(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _damage() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("the check found it damaged")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_damaged(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED
