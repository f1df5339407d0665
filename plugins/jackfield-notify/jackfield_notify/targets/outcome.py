"""How an attempt to deliver a message can fail."""

import email.utils
from datetime import UTC


class DeliveryError(Exception):
    """A message did not arrive. What it says is shown to users, and holds no secrets."""


class TemporaryError(DeliveryError):
    """It may arrive later.

    Args:
        reason: what went wrong.
        retry_after: seconds to wait at least, if the receiver said so.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class PermanentError(DeliveryError):
    """It never will, as it is."""


TEMPORARY_STATUS = frozenset({408, 425, 429})
"""Of the answers from 400 to 499, those that say: later. 500 and above all do."""


def is_temporary(status: int) -> bool:
    """Whether an HTTP status says that the same request may succeed later."""
    return status >= 500 or status in TEMPORARY_STATUS


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that the header ``Retry-After`` asks for: a number of them, or a date (RFC 9110, 10.2.3).

    Args:
        header: its value.
        now: seconds since 1970.
    """
    if not header:
        return None
    if header.strip().isdecimal():
        return float(header[:12])
    try:
        at = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)
