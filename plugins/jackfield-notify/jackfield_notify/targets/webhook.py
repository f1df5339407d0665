"""Messages to somebody's HTTP server, signed."""

from collections.abc import Callable

import httpx2

from jackfield.hooks import JsonObject
from jackfield_notify.notification import Notification, compact
from jackfield_notify.outbox import Message
from jackfield_notify.settings import WebhookTarget
from jackfield_notify.targets import http
from jackfield_notify.targets.outcome import PermanentError, TemporaryError, is_temporary, retry_after
from jackfield_notify.webhook import sign


class WebhookSender:
    """Posts messages to a URL.

    Args:
        settings: where, and how they are signed.
        timeout: seconds for an answer.
        clock: seconds since 1970.
    """

    def __init__(self, settings: WebhookTarget, timeout: float, clock: Callable[[], float]) -> None:
        self.concurrency = settings.concurrency
        self._url = settings.url.get_secret_value()
        secrets = [settings.secret, *filter(None, [settings.previous_secret])]
        self._secrets = [secret.get_secret_value() for secret in secrets]
        self._clock = clock
        self._client = http.client(timeout, settings.ca_file)

    async def send(self, message: Message) -> None:
        """Try to deliver a message.

        Raises:
            TemporaryError: it has not arrived, but may later.
            PermanentError: the receiver does not want it.
        """
        body = compact(payload(message.notification)).encode()
        try:
            response = await self._client.post(self._url, content=body, headers=self._headers(message.id, body))
        except (httpx2.HTTPError, OSError) as error:
            raise TemporaryError(f"No answer: {type(error).__name__}.") from error
        self._judge(response)

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        timestamp = int(self._clock())
        return {
            "content-type": "application/json",
            "user-agent": "jackfield-notify",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(sign(secret, message_id, timestamp, body) for secret in self._secrets),
        }

    def _judge(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        reason = f"The receiver answered {response.status_code}."
        if response.has_redirect_location:
            raise PermanentError(f"{reason} Redirects are not followed: set the URL to where it leads.")
        if is_temporary(response.status_code):
            raise TemporaryError(reason, retry_after(response.headers.get("retry-after"), self._clock()))
        raise PermanentError(reason)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def payload(told: Notification) -> JsonObject:
    """The body, in the shape that Standard Webhooks recommends."""
    return {
        "type": told.kind,
        "timestamp": told.timestamp,
        "data": {
            "level": told.level,
            "title": told.title,
            "model": told.model,
            "request_id": told.request_id,
            "sound": told.sound,
            "held_back": told.held_back,
            "details": dict(told.data),
        },
    }
