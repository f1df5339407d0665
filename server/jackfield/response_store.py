"""Responses that clients asked to keep, in a file of SQLite's.

Several servers may share the file. What cannot be read is put aside, and nothing here stops anybody from getting an
answer.
"""

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from jackfield.errors import UnavailableError
from jackfield.protocol.base import JsonObject

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FILE = "responses-1.sqlite3"
"""Its name says which tables it has."""
DAY = 86400.0
BUSY_SECONDS = 10.0
"""How long to wait for another server that writes."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The last one is for tables that are missing and files of unknown formats: the statements are always right."""
UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)

# Deleted means gone: pages are given back to the system, and overwritten first.
_TABLES = """
PRAGMA auto_vacuum = FULL;
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    previous TEXT,
    used REAL NOT NULL,
    bytes INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS items (
    id TEXT NOT NULL,
    response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    made INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS items_by_response ON items (response);
CREATE INDEX IF NOT EXISTS items_by_id ON items (id);
"""
_LAST_MADE = "items_by_id"
_CHAIN = """
WITH RECURSIVE chain (id, previous, depth) AS (
    SELECT id, previous, 0 FROM responses WHERE id = ? AND owner = ?
    UNION ALL
    SELECT responses.id, responses.previous, depth + 1 FROM responses JOIN chain ON responses.id = chain.previous
)
"""
_EXCESS = """
DELETE FROM responses WHERE id IN (
    SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY used DESC, rowid DESC) AS newer FROM responses)
    WHERE newer > ?
)
"""


class MissingResponseError(Exception):
    """A response is not stored, or one that it goes on from is not stored any more."""

    def __init__(self, response: str) -> None:
        super().__init__(response)
        self.response = response
        """Its id."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response to keep."""

    id: str
    owner: str
    """Whose it is; nobody else finds it."""
    previous: str | None
    """The id of the one that it goes on from."""
    body: str
    """The response itself, as JSON."""
    given: Sequence[JsonObject]
    """The items of its request, each with an id."""
    made: Sequence[JsonObject]
    """The items of its answer."""


class ResponseStore:
    """Keeps responses. Its methods leave the event loop for a thread.

    Args:
        folder: where the file is, or will be once something is stored.
        max_bytes: how much there may be; what has not been used for longest has to go.
        max_days: how long each is kept after it was last used.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_days: float) -> None:
        self._file = folder / FILE
        self._max_bytes = max_bytes
        self._max_days = max_days

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._max_bytes > 0

    async def put(self, stored: StoredResponse) -> bool:
        """Keep it; false when that could not be done, and the log says why."""
        try:
            await asyncio.to_thread(self._put, stored)
        except (sqlite3.Error, OSError) as error:
            logger.warning("A response could not be stored: %s", error)
            return False
        return True

    async def get(self, owner: str, response: str) -> str | None:
        """The response, as JSON; None if there is none."""
        query = "SELECT body FROM responses WHERE id = ? AND owner = ?"
        return await self._look(lambda database: _sound(database.execute(query, (response, owner)).fetchone()))

    async def delete(self, owner: str, response: str) -> bool:
        """Forget it; false if there is none."""
        query = "DELETE FROM responses WHERE id = ? AND owner = ?"
        return bool(await self._look(lambda database: database.execute(query, (response, owner)).rowcount))

    async def given(self, owner: str, response: str) -> list[JsonObject]:
        """The items that a response was made from, those of earlier responses first.

        Raises:
            MissingResponseError: it is not stored, or an earlier one is not.
        """
        return await self._look(lambda database: _items(database, owner, response, "depth > 0 OR NOT made"))

    async def conversation(self, owner: str, response: str) -> list[JsonObject]:
        """The same, and then the items of its answer.

        Raises:
            MissingResponseError: it is not stored, or an earlier one is not.
        """
        return await self._look(lambda database: _items(database, owner, response, "true"))

    async def items(self, owner: str, ids: Sequence[str]) -> dict[str, JsonObject]:
        """Those of these items that are stored, by id."""
        query = """
            SELECT items.id, items.body FROM items JOIN responses ON responses.id = response
            WHERE owner = ? AND items.id IN (SELECT value FROM json_each(?))
        """

        def found(database: sqlite3.Connection) -> dict[str, JsonObject]:
            rows = database.execute(query, (owner, json.dumps(ids))).fetchall()
            return {name: json.loads(body) for name, body in rows}

        return await self._look(found)

    async def forget_old(self) -> None:
        """Forget what has been kept long enough, for servers that nobody asks to store anything any more."""
        with suppress(UnavailableError):
            await self._look(lambda _: None)

    # --- On a thread -------------------------------------------------------------------------------------------------

    async def _look(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            return await asyncio.to_thread(self._do, work)
        except (sqlite3.Error, OSError, ValueError) as error:
            # A ValueError is JSON that has been damaged.
            logger.warning("%s cannot be used: %s", self._file, error)
            raise UnavailableError(
                "The stored responses cannot be read now.", suggestions=("Try again.", "Look at the server's log.")
            ) from error

    def _put(self, stored: StoredResponse) -> None:
        given, made = [[(item["id"], json.dumps(item)) for item in items] for items in (stored.given, stored.made)]
        size = sum(len(body.encode()) for body in (stored.body, *(body for _, body in given + made)))
        if size > self._max_bytes:
            raise OSError(f"it has {size} bytes, and 'stored_responses_bytes' is {self._max_bytes}")
        row = (stored.id, stored.owner, stored.previous, time.time(), size, stored.body)
        rows = [(name, stored.id, kind, body) for kind, items in enumerate((given, made)) for name, body in items]

        def insert(database: sqlite3.Connection) -> None:
            database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)
            database.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
            database.execute(_EXCESS, (self._max_bytes,))

        self._do(insert, make=True)

    def _do(self, work: Callable[[sqlite3.Connection], Result], *, make: bool = False) -> Result:
        """Work on the file, which is made if it has to be; once more on a new one if it is damaged."""
        known = self._file.stat().st_ino if self._file.exists() else None
        try:
            return self._once(work, make)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # Not even an error's message can be decoded where names of tables are damaged.
            damaged = isinstance(error, UnicodeDecodeError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED
            if not damaged:
                raise
            self._put_aside(known, error)
        return self._once(work, make)

    def _once(self, work: Callable[[sqlite3.Connection], Result], make: bool) -> Result:
        if make:
            # Before there is anything in it that others should not read.
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
        place = self._file if self._file.exists() else ":memory:"
        with closing(sqlite3.connect(place, timeout=BUSY_SECONDS)) as database, database:
            # An error would quote the text that it cannot decode.
            database.text_factory = partial(str, encoding="utf-8", errors="replace")
            # Where the disk is full it can still be read, but not even be set to what it is.
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_LAST_MADE,)).fetchone():
                database.executescript(_TABLES)
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("PRAGMA secure_delete = ON")
            _if_writable(database, "DELETE FROM responses WHERE used < ?", (time.time() - self._max_days * DAY,))
            return work(database)

    def _put_aside(self, known: int | None, error: Exception) -> None:
        # Another server may have done it already.
        if self._file.exists() and self._file.stat().st_ino == known:
            aside = self._file.with_suffix(f".damaged-{time.time_ns()}")
            self._file.rename(aside)
            logger.warning(
                "The stored responses are damaged (%s); the file is now %s, and a new one begins", error, aside
            )


def _sound(row: tuple[str] | None) -> str | None:
    """A response's body, which goes out as it is, if it is still JSON."""
    if row is None:
        return None
    json.loads(row[0])
    return row[0]


def _items(database: sqlite3.Connection, owner: str, response: str, which: str) -> list[JsonObject]:
    """Items of a response and of those it goes on from, in order; whoever reads them uses them all."""
    ancestors = _CHAIN + "SELECT id, previous FROM chain ORDER BY depth"  # noqa: S608 - both are constants
    chain = database.execute(ancestors, (response, owner)).fetchall()
    last = chain[-1][1] if chain else response
    if last is not None:
        raise MissingResponseError(last)
    _touch(database, owner, response)
    query = "SELECT body FROM items JOIN chain ON response = chain.id WHERE {} ORDER BY depth DESC, items.rowid"
    # All of them at once: a statement that an error leaves in the middle keeps the file locked.
    rows = database.execute(_CHAIN + query.format(which), (response, owner)).fetchall()
    return [json.loads(body) for (body,) in rows]


def _touch(database: sqlite3.Connection, owner: str, response: str) -> None:
    update = "UPDATE responses SET used = ? WHERE id IN (SELECT id FROM chain)"
    _if_writable(database, _CHAIN + update, (response, owner, time.time()))


def _if_writable(database: sqlite3.Connection, statement: str, parameters: Sequence[object]) -> None:
    """Do what may be left undone where nothing can be written."""
    try:
        database.execute(statement, parameters)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in UNWRITABLE:
            raise
