"""Apple devices that want to be told."""

import hashlib
import re
from dataclasses import dataclass

from jackfield.errors import InvalidRequestError
from jackfield.hooks import JsonObject
from jackfield_notify.database import Database

_TOKEN = re.compile(r"[0-9a-f]{64,200}")


@dataclass(frozen=True, slots=True)
class Device:
    """A device with the app on it."""

    target: str
    """The target of type ``apns`` that reaches it."""
    token: str
    """Given to the app by Apple: whoever has it and the key can push to the device."""
    name: str
    registered: float
    """Seconds since 1970."""

    @property
    def id(self) -> str:
        """Names it without giving the token away."""
        return "dev_" + hashlib.sha256(f"{self.target}:{self.token}".encode()).hexdigest()[:16]

    def report(self) -> JsonObject:
        """What ``/v1/notifications/devices`` shows."""
        return {
            "id": self.id,
            "target": self.target,
            "token": f"{self.token[:4]}…{self.token[-4:]}",
            "name": self.name,
            "registered": self.registered,
        }


def valid_token(text: str) -> str:
    """A device's token, in lower case.

    Apple says that its length may change; all have been 64 digits or somewhat more.

    Raises:
        InvalidRequestError: it is none.
    """
    token = text.strip().lower()
    if not _TOKEN.fullmatch(token) or len(token) % 2:
        raise InvalidRequestError(
            "Invalid value for 'token': a device token is 64 or more hexadecimal digits, two for each byte.",
            param="token",
            code="invalid_value",
            suggestions=("Send the bytes from didRegisterForRemoteNotificationsWithDeviceToken in hexadecimal.",),
        )
    return token


class Devices:
    """The devices in a database. For all threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, device: Device) -> None:
        """Remember a device, or that it is still there."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO devices (target, token, name, registered) VALUES (?, ?, ?, ?)",
                (device.target, device.token, device.name, device.registered),
            )

    def all(self, target: str | None = None) -> list[Device]:
        """The devices, of a target or of all, those registered first in front."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT target, token, name, registered FROM devices WHERE ? IS NULL OR target = ? ORDER BY registered",
                (target, target),
            ).fetchall()
        return [Device(**row) for row in rows]

    def remove(self, target: str, token: str, *, unless_after: float | None = None) -> bool:
        """Forget a device, unless it has registered again after a moment; tells whether it was there."""
        with self._database.transaction() as connection:
            return bool(
                connection.execute(
                    "DELETE FROM devices WHERE target = ? AND token = ? AND registered <= ?",
                    (target, token, float("inf") if unless_after is None else unless_after),
                ).rowcount
            )
