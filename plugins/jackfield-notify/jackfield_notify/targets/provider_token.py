"""The token that shows Apple who sends."""

from collections.abc import Callable
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from jackfield.errors import ConfigurationError

RENEW_SECONDS = 40 * 60
SOONEST_SECONDS = 20 * 60
"""Apple refuses tokens older than an hour, and senders that renew theirs more than once in twenty minutes
(developer.apple.com, "Establishing a token-based connection to APNs")."""


class ProviderToken:
    """A JSON Web Token, signed with ES256, used until it has to be renewed.

    Args:
        key_file: the private key, as Apple gives it.
        key_id: its ten characters.
        team_id: the team's.
        clock: seconds since 1970.

    Raises:
        ConfigurationError: the file does not hold such a key.
    """

    def __init__(self, key_file: Path, key_id: str, team_id: str, clock: Callable[[], float]) -> None:
        self._key = read_key(key_file)
        self._key_id = key_id
        self._team_id = team_id
        self._clock = clock
        self._issued = float("-inf")
        self._token = ""

    def current(self) -> str:
        """The token to send."""
        if not 0 <= self._age < RENEW_SECONDS:
            self._renew()
        return self._token

    def refused(self, token: str) -> float:
        """Apple says that a token has expired: renew it, if it is still the one in use.

        Returns:
            Seconds to wait until it can be renewed; 0 says that there is a new one already.
        """
        if token == self._token:
            if self._age < SOONEST_SECONDS:
                return SOONEST_SECONDS - self._age
            self._renew()
        return 0.0

    @property
    def _age(self) -> float:
        return self._clock() - self._issued

    def _renew(self) -> None:
        self._issued = self._clock()
        claims = {"iss": self._team_id, "iat": int(self._issued)}
        self._token = jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._key_id})


def read_key(file: Path) -> EllipticCurvePrivateKey:
    """The private key in a file.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _no_key(file) from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise _no_key(file)
    return key


def _no_key(file: Path) -> ConfigurationError:
    return ConfigurationError(
        f"The file {file} does not hold a key for APNs.",
        suggestions=("Set key_file to the AuthKey_....p8 from Apple, as it was downloaded.",),
    )
