"""Signatures of webhooks, as `Standard Webhooks <https://www.standardwebhooks.com>`_ 1.0 describes them.

Receivers may use `verify`, or any library for Standard Webhooks; this module needs nothing but Python.
"""

import base64
import binascii
import hashlib
import hmac
import secrets as randomness
import time
from collections.abc import Mapping, Sequence

PREFIX = "whsec_"
TOLERANCE = 300
"""Seconds between the sender's clock and the receiver's: older messages may have been recorded and sent again."""


class SignatureError(ValueError):
    """A webhook that is not to be believed."""


def new_secret() -> str:
    """A random one, of 32 bytes."""
    return PREFIX + base64.b64encode(randomness.token_bytes(32)).decode()


def key(secret: str) -> bytes:
    """The bytes that a secret stands for.

    Raises:
        ValueError: it is not ``whsec_`` and 24 to 64 bytes in base64.
    """
    try:
        raw = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raw = b""
    if not secret.startswith(PREFIX) or not 24 <= len(raw) <= 64:
        raise ValueError(f"a secret is {PREFIX} and then 24 to 64 random bytes in base64")
    return raw


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a message, for the header ``webhook-signature``."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key(secret), signed, hashlib.sha256)).decode()


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secret: str | Sequence[str],
    *,
    tolerance: float = TOLERANCE,
    now: float | None = None,
) -> str:
    """Make sure that a webhook comes from who knows the secret, unchanged and just now.

    Args:
        body: the request's body as it came, not parsed and written again.
        headers: its headers; upper and lower case do not matter.
        secret: what the sender signs with, or several of them, while one replaces the other.
        tolerance: seconds that the message may be old, or ahead of the clock.
        now: seconds since 1970; by default, what the clock says.

    Returns:
        The message's id. It is the same when a message comes again: remember it for as long as ``tolerance`` and
        longer, and do nothing the second time.

    Raises:
        SignatureError: do not believe it; answer 401.
    """
    message_id, timestamp, signatures = _read(headers)
    age = (time.time() if now is None else now) - timestamp
    if abs(age) > tolerance:
        raise SignatureError(f"The message was sent {age:.0f} seconds ago, and at most {tolerance:g} are allowed.")
    known = [secret] if isinstance(secret, str) else secret
    expected = [sign(one, message_id, timestamp, body).encode() for one in known]
    if not any(hmac.compare_digest(mine, theirs) for mine in expected for theirs in signatures):
        raise SignatureError("No signature of the message is right.")
    return message_id


def _read(headers: Mapping[str, str]) -> tuple[str, int, list[bytes]]:
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        found = lower["webhook-id"], lower["webhook-timestamp"], lower["webhook-signature"]
    except KeyError as missing:
        raise SignatureError(f"The header {missing} is missing.") from None
    if not (found[1].isascii() and found[1].isdecimal() and len(found[1]) <= 12):
        raise SignatureError("The header 'webhook-timestamp' is not a number of seconds.")
    return found[0], int(found[1]), found[2].encode().split()
