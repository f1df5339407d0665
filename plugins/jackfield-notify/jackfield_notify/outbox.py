"""Messages that have to be delivered, those that have been, and those that could not be."""

import logging
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jackfield.hooks import JsonObject
from jackfield_notify.database import Database, StorageError
from jackfield_notify.notification import Notification

logger = logging.getLogger(__name__)

State = Literal["queued", "in_flight", "delivered", "dead"]

MOST_UNWRITTEN = 1000
"""Messages held in memory while the file cannot be written; then the oldest are lost."""

_FULL = "The outbox was full."


@dataclass(frozen=True, slots=True)
class Message:
    """One notification for one receiver. Times are seconds since 1970."""

    target: str
    notification: Notification
    created: float
    due: float
    expires: float
    """No attempt after that one fails."""
    address: str = ""
    """Which of the target's receivers, if it has many: a device's token."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    """The idempotency key: the same at every attempt."""
    state: State = "queued"
    attempts: int = 0
    finished: float | None = None
    error: str | None = None
    """What went wrong at the last attempt."""

    def report(self) -> JsonObject:
        """What commands and ``/v1/notifications/outbox`` show; without the address, which is a secret of sorts."""
        return {
            "id": self.id,
            "target": self.target,
            "state": self.state,
            "kind": self.notification.kind,
            "title": self.notification.title,
            "request_id": self.notification.request_id,
            "created": self.created,
            "due": self.due,
            "attempts": self.attempts,
            "finished": self.finished,
            "error": self.error,
        }


class Outbox:
    """The messages in a database. For all threads.

    Args:
        database: where they are.
        most_queued: beyond so many that wait, new ones are dead letters at once.
        keep_delivered: the last so many are kept to be seen.
        keep_dead: the same for dead letters.
    """

    def __init__(
        self, database: Database, *, most_queued: int = 10_000, keep_delivered: int = 1000, keep_dead: int = 1000
    ) -> None:
        self._database = database
        self._most_queued = most_queued
        self._keep = {"delivered": keep_delivered, "dead": keep_dead}
        self._unwritten: deque[Message] = deque()
        self._putting = threading.Lock()
        self.lost = 0
        """Messages that could be held neither in the file nor in memory."""

    # --- Those who send ------------------------------------------------------------------------------------------

    def put(self, messages: Iterable[Message]) -> None:
        """Keep messages until they are delivered: they are safe when this returns, unless the file cannot be written.

        Then they are held in memory, and written with the next ones, or when somebody looks for what is due.
        """
        with self._putting:
            self._unwritten.extend(messages)
            try:
                self._write()
            except StorageError as error:
                logger.warning("%d messages wait in memory for the outbox: %s", len(self._unwritten), error)
                self._forget_oldest()

    def _write(self) -> None:
        if not self._unwritten:
            return
        with self._database.transaction() as connection:
            waiting = _count(connection, "queued") + _count(connection, "in_flight")
            for index, message in enumerate(self._unwritten):
                _insert(connection, message, fits=waiting + index < self._most_queued)
            self._prune(connection)
        self._unwritten.clear()

    def _forget_oldest(self) -> None:
        while len(self._unwritten) > MOST_UNWRITTEN:
            self._unwritten.popleft()
            self.lost += 1

    def _prune(self, connection: sqlite3.Connection) -> None:
        for state, keep in self._keep.items():
            connection.execute(
                "DELETE FROM messages WHERE id IN"
                " (SELECT id FROM messages WHERE state = ? ORDER BY finished DESC LIMIT -1 OFFSET ?)",
                (state, keep),
            )

    # --- Those who deliver ---------------------------------------------------------------------------------------

    def recover(self) -> int:
        """Queue again what was in flight when the server ended; tells how many."""
        with self._database.transaction() as connection:
            return connection.execute(
                "UPDATE messages SET state = 'queued', due = created WHERE state = 'in_flight'"
            ).rowcount

    def lease(self, target: str, now: float, seconds: float, limit: int) -> list[Message]:
        """Messages to deliver now, the oldest first; nobody else gets them for so many seconds."""
        with self._putting:
            self._write()
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT * FROM messages WHERE target = ? AND state IN ('queued', 'in_flight') AND due <= ?"
                " ORDER BY due, created LIMIT ?",
                (target, now, limit),
            ).fetchall()
            connection.executemany(
                "UPDATE messages SET state = 'in_flight', due = ?, attempts = attempts + 1 WHERE id = ?",
                [(now + seconds, row["id"]) for row in rows],
            )
        return [_message({**row, "state": "in_flight", "attempts": row["attempts"] + 1}) for row in rows]

    def next_due(self, target: str) -> float | None:
        """When there will be something to deliver."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT min(due) FROM messages WHERE target = ? AND state IN ('queued', 'in_flight')", (target,)
            ).fetchone()
        return None if row[0] is None else float(row[0])

    def delivered(self, message_id: str, now: float) -> None:
        """It has arrived."""
        self._finish(message_id, "delivered", now, None)

    def dead(self, message_id: str, now: float, error: str) -> None:
        """It will not arrive."""
        self._finish(message_id, "dead", now, error)

    def retry(self, message_id: str, due: float, error: str | None) -> None:
        """It is to be tried again, unless it has been given up meanwhile."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE messages SET state = 'queued', due = ?, error = ? WHERE id = ? AND state = 'in_flight'",
                (due, error, message_id),
            )

    def give_back(self, message: Message) -> None:
        """It was not tried after all."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE messages SET state = 'queued', due = created, attempts = attempts - 1"
                " WHERE id = ? AND state = 'in_flight'",
                (message.id,),
            )

    def _finish(self, message_id: str, state: State, now: float, error: str | None) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE messages SET state = ?, finished = ?, error = ? WHERE id = ?", (state, now, error, message_id)
            )

    # --- What becomes of those that nobody can deliver -----------------------------------------------------------

    def bury_orphans(self, targets: Sequence[str], now: float) -> int:
        """Make dead letters of what is for a target that is no longer in the settings; tells how many."""
        marks = ", ".join("?" for _ in targets)
        return self._bury(f"target NOT IN ({marks})", tuple(targets), now, "The target is not in the settings.")

    def bury_address(self, target: str, address: str, now: float, error: str) -> int:
        """Make dead letters of what waits for a receiver that is gone; tells how many."""
        return self._bury("target = ? AND address = ?", (target, address), now, error)

    def _bury(self, where: str, values: tuple[str, ...], now: float, error: str) -> int:
        with self._database.transaction() as connection:
            return connection.execute(
                "UPDATE messages SET state = 'dead', finished = ?, error = ?"  # noqa: S608 - where is ours
                f" WHERE state IN ('queued', 'in_flight') AND {where}",
                (now, error, *values),
            ).rowcount

    def revive(self, ids: Sequence[str] | None, now: float, seconds: float) -> list[str]:
        """Queue dead letters again.

        Args:
            ids: which; None stands for all.
            now: seconds since 1970.
            seconds: how long to go on trying from now on.

        Returns:
            Those that were dead letters.
        """
        with self._database.transaction() as connection:
            dead = [row["id"] for row in connection.execute("SELECT id FROM messages WHERE state = 'dead'")]
            chosen = [one for one in dead if ids is None or one in ids]
            connection.executemany(
                "UPDATE messages SET state = 'queued', due = ?, expires = ?, finished = NULL WHERE id = ?",
                [(now, now + seconds, one) for one in chosen],
            )
        return chosen

    # --- Those who look ------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many there are in each state."""
        with self._database.transaction() as connection:
            return {state: _count(connection, state) for state in get_args(State)}

    def messages(self, *states: State, limit: int = 100) -> list[Message]:
        """The newest in these states, the newest first."""
        marks = ", ".join("?" for _ in states)
        with self._database.transaction() as connection:
            rows = connection.execute(
                f"SELECT * FROM messages WHERE state IN ({marks}) ORDER BY created DESC, rowid DESC LIMIT ?",  # noqa: S608
                (*states, limit),
            ).fetchall()
        return [_message(dict(row)) for row in rows]


def _count(connection: sqlite3.Connection, state: State) -> int:
    return int(connection.execute("SELECT count(*) FROM messages WHERE state = ?", (state,)).fetchone()[0])


def _insert(connection: sqlite3.Connection, message: Message, *, fits: bool) -> None:
    kept: tuple[State, float | None, str | None] = ("queued", None, None) if fits else ("dead", message.created, _FULL)
    connection.execute(
        "INSERT INTO messages (id, target, address, notification, created, due, expires, attempts, state, finished,"
        " error) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
        (
            message.id,
            message.target,
            message.address,
            message.notification.to_json(),
            message.created,
            message.due,
            message.expires,
            *kept,
        ),
    )


def _message(row: dict[str, Any]) -> Message:
    return Message(**{**row, "notification": Notification.from_json(row["notification"])})
