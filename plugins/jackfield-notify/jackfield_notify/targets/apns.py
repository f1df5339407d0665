"""Messages to Apple devices.

Sources, at developer.apple.com under User Notifications: "Sending notification requests to APNs" (headers, 4096 bytes,
collapse ids of 64 bytes), "Handling notification responses from APNs" (status codes and reasons, and which of them are
not to be retried), "Establishing a token-based connection to APNs".
"""

import hashlib
from collections.abc import Callable
from typing import Any

import httpx2

from jackfield.hooks import JsonObject
from jackfield_notify.devices import Devices
from jackfield_notify.notification import Notification, compact
from jackfield_notify.outbox import Message
from jackfield_notify.settings import ApnsTarget
from jackfield_notify.targets import http
from jackfield_notify.targets.outcome import PermanentError, TemporaryError, is_temporary, retry_after
from jackfield_notify.targets.provider_token import SOONEST_SECONDS, ProviderToken

MOST_BYTES = 4096

GONE = frozenset({"Unregistered", "ExpiredToken", "BadDeviceToken"})
"""Reasons after which a device is forgotten: it has no such app any more, or the token was never right here. An app
registers again when it starts."""

LATER = frozenset({"TooManyRequests", "TooManyProviderTokenUpdates", "IdleTimeout", "InternalServerError"}) | {
    "ServiceUnavailable",
    "Shutdown",
}
"""Reasons that pass."""

HINTS = {
    "BadDeviceToken": "The device was forgotten; was its app built for the other environment?",
    "BadTopic": "Set topic to the app's bundle id.",
    "TopicDisallowed": "Set topic to the app's bundle id, and use a key that may push to it.",
    "DeviceTokenNotForTopic": "Set topic to the bundle id of the app that registered.",
    "InvalidProviderToken": "Check key_file, key_id and team_id.",
    "MissingProviderToken": "Check key_file, key_id and team_id.",
    "BadEnvironmentKeyIdInToken": "The key is for the other environment.",
    "ExpiredProviderToken": "Is this machine's clock right?",
    "Unregistered": "The device was forgotten.",
    "ExpiredToken": "The device was forgotten.",
}


class ApnsSender:
    """Pushes messages to the devices of one app.

    Args:
        name: the target's.
        settings: which app, and the key for it.
        devices: those that have registered; one that Apple does not know any more is removed.
        timeout: seconds for an answer.
        clock: seconds since 1970.

    Raises:
        ConfigurationError: the key cannot be used.
    """

    def __init__(
        self, name: str, settings: ApnsTarget, devices: Devices, timeout: float, clock: Callable[[], float]
    ) -> None:
        self.concurrency = settings.concurrency
        self._name = name
        self._settings = settings
        self._devices = devices
        self._clock = clock
        self._token = ProviderToken(settings.key_file, settings.key_id, settings.team_id, clock)
        self._client = http.client(timeout, settings.ca_file, http2=True)

    async def send(self, message: Message) -> None:
        """Try to push a message to its device.

        Raises:
            TemporaryError: Apple does not take it now.
            PermanentError: Apple never will.
        """
        token = self._token.current()
        response = await self._post(message, token)
        if _reason(response) == "ExpiredProviderToken":
            if wait := self._token.refused(token):
                raise TemporaryError(_words(response), wait)
            response = await self._post(message, self._token.current())
        self._judge(response, message)

    async def _post(self, message: Message, token: str) -> httpx2.Response:
        url = f"{self._settings.host}/3/device/{message.address}"
        try:
            return await self._client.post(
                url, content=body(message.notification), headers=self._headers(message, token)
            )
        except (httpx2.HTTPError, OSError) as error:
            raise TemporaryError(f"No answer from Apple: {type(error).__name__}.") from error

    def _headers(self, message: Message, token: str) -> dict[str, str]:
        told = message.notification
        return {
            "authorization": f"bearer {token}",
            "apns-id": message.id,
            "apns-topic": self._settings.topic,
            "apns-push-type": "alert",
            # 10 is now, 5 is when it suits the device's battery.
            "apns-priority": "10" if told.sound or told.level == "error" else "5",
            "apns-expiration": str(int(self._clock()) + self._settings.keep_seconds),
            "apns-collapse-id": collapse_id(told),
        }

    def _judge(self, response: httpx2.Response, message: Message) -> None:
        if response.is_success:
            return
        reason = _reason(response)
        if reason in GONE:
            self._forget(message.address, response)
        elif reason == "TooManyProviderTokenUpdates":
            raise TemporaryError(_words(response), SOONEST_SECONDS)
        elif reason in LATER or reason == "ExpiredProviderToken" or is_temporary(response.status_code):
            raise TemporaryError(_words(response), retry_after(response.headers.get("retry-after"), self._clock()))
        raise PermanentError(_words(response))

    def _forget(self, device: str, response: httpx2.Response) -> None:
        # Apple says since when, in milliseconds: the app may have registered again.
        since = _document(response).get("timestamp")
        moment = since / 1000 if isinstance(since, int | float) else None
        self._devices.remove(self._name, device, unless_after=moment)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()


def body(told: Notification) -> bytes:
    """What the device gets, within what Apple takes."""
    document = _document_for(told, told.text)
    excess = len(compact(document).encode()) - MOST_BYTES
    if excess > 0:
        document = _document_for(told, told.text.encode()[: -excess - 3].decode(errors="ignore") + "…")
    return compact(document).encode()


def _document_for(told: Notification, text: str) -> JsonObject:
    alert = {"title": told.heading, "body": text}
    aps: JsonObject = {"alert": alert, "thread-id": told.kind}
    if told.sound:
        aps["sound"] = "default"
    else:
        aps["interruption-level"] = "passive"
    own = {"kind": told.kind, "level": told.level, "model": told.model, "request_id": told.request_id}
    return {"aps": aps, "jackfield": {**own, "time": told.time}}


def collapse_id(told: Notification) -> str:
    """Messages with the same one replace each other on the device: the same thing, said again."""
    same = f"{told.kind}\0{told.model}\0{told.request_id}\0{told.title}"
    return hashlib.sha256(same.encode()).hexdigest()[:32]


def _document(response: httpx2.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(response: httpx2.Response) -> str:
    return str(_document(response).get("reason", ""))[:64]


def _words(response: httpx2.Response) -> str:
    reason = _reason(response)
    said = f"Apple answered {response.status_code} {reason}".rstrip() + "."
    return f"{said} {HINTS[reason]}" if reason in HINTS else said
