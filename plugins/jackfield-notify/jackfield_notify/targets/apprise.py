"""Messages to any service that Apprise speaks to."""

import logging

from jackfield_notify.outbox import Message
from jackfield_notify.settings import AppriseTarget
from jackfield_notify.targets import services
from jackfield_notify.targets.outcome import TemporaryError

_KINDS = {"info": "info", "warning": "warning", "error": "failure"}


class AppriseSender:
    """Sends through Apprise.

    Apprise does not tell whether a failure will pass, nor can it pass an idempotency key on: every failure is tried
    again, and a message whose answer got lost arrives twice.
    """

    def __init__(self, settings: AppriseTarget, timeout: float) -> None:
        service = services.open_url(settings.url.get_secret_value(), timeout)
        assert service is not None  # noqa: S101 - by the settings' validation
        self._service = service
        self.concurrency = settings.concurrency

    async def send(self, message: Message) -> None:
        """Try to deliver a message.

        Raises:
            TemporaryError: it has not arrived.
        """
        told = message.notification
        with await self._service.async_notify(
            title=told.heading, body=told.text, notify_type=_KINDS.get(told.level, "info"), log_level=logging.WARNING
        ) as result:
            if not result:
                # Warnings name the service and what it answered; secrets are only in more detailed lines.
                reasons = [entry.message for entry in result.logs()]
                raise TemporaryError(reasons[-1] if reasons else f"Apprise says {result.status.name.lower()}.")

    async def close(self) -> None:
        """Nothing is kept open."""
