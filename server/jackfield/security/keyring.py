"""The keys that are known, from a file and from the environment, and who holds one."""

import hmac
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from starlette.requests import HTTPConnection

from jackfield.errors import ConfigurationError, ExpiredKeyError
from jackfield.security import key_file
from jackfield.security.key import NAME, Key, Scope, digest
from jackfield.security.rate import Allowance

logger = logging.getLogger(__name__)

ONE, SEVERAL = "JACKFIELD_API_KEY", "JACKFIELD_API_KEYS"
SHORTEST = 16
"""Characters of a key that somebody made up."""
LOOK_SECONDS = 1.0
"""How soon a change of the file counts."""

_ENTRY = re.compile(rf"(?P<name>{NAME})(/(?P<scopes>[a-z+]+))?=(?P<secret>\S+)")


class Keyring:
    """Finds the key that a request carries. As soon as there is a file of keys, even without any, all need one.

    Args:
        file: where keys are, or will be.
        environment: ``JACKFIELD_API_KEY`` is a key for everything, ``JACKFIELD_API_KEYS`` has several.

    Raises:
        ConfigurationError: the file is not to be trusted, or a variable is wrong.
    """

    def __init__(self, file: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._file = file
        self._own = from_environment({} if environment is None else environment)
        self._keys: list[Key] = list(self._own)
        self._allowances: dict[str, Allowance] = {}
        self._seen: object = None
        self._looked = -LOOK_SECONDS
        self.asks = bool(self._own)
        """Whether requests need a key; nothing that becomes of the file makes it false again."""
        self.reload()

    def reload(self) -> None:
        """Read the file again; one that is gone has no keys.

        Raises:
            ConfigurationError: it is not to be trusted; the keys stay as they were.
        """
        self._looked, self._seen = time.monotonic(), self._state()
        listed = key_file.read(self._file) if self._file else None
        keys = [*self._own, *(listed or ())]
        names = [key.name for key in keys]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigurationError(
                f"The key {twice!r} is in the environment and in {self._file}.", suggestions=("Rename one of them.",)
            )
        self._keys = keys
        self.asks = self.asks or listed is not None
        self._allowances = {key.name: self._allowance(key) for key in keys}

    def look(self) -> None:
        """Notice a change of the file, at most once a second; one that cannot be read changes nothing."""
        if time.monotonic() - self._looked < LOOK_SECONDS or self._file is None:
            return
        self._looked = time.monotonic()
        if self._state() == self._seen:
            return
        try:
            self.reload()
            logger.info("The API keys have been read again: there are %d.", len(self._keys))
        except ConfigurationError as error:
            logger.error("The API keys stay as they were: %s", error.message)

    def find(self, connection: HTTPConnection) -> Key | None:
        """The key that a request carries.

        Raises:
            ExpiredKeyError: its time is over.
        """
        secret = secret_of(connection)
        if not secret:
            return None
        carried = digest(secret)
        # All of them, each in constant time: how long it takes must not tell how near a guess came.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, carried)]
        if not found:
            return None
        if found[0].expired:
            raise ExpiredKeyError(found[0].name)
        return found[0]

    def allowance(self, key: Key) -> Allowance:
        """What is left to it."""
        return self._allowances[key.name]

    def _allowance(self, key: Key) -> Allowance:
        known, fresh = self._allowances.get(key.name), Allowance(key)
        return known if known and known.limits == fresh.limits else fresh

    def _state(self) -> object:
        """What changes with the file, since it is replaced as a whole."""
        try:
            found = self._file.stat() if self._file else None
        except OSError:
            return None
        return found and (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)


def secret_of(connection: HTTPConnection) -> str:
    """The key itself, as OpenAI's clients send it, or Anthropic's; empty if there is none."""
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else connection.headers.get("x-api-key", "").strip()


def from_environment(environment: Mapping[str, str] = os.environ) -> list[Key]:
    """The keys in two variables.

    Raises:
        ConfigurationError: one of them is wrong.
    """
    keys = [_entry(entry.strip()) for entry in environment.get(SEVERAL, "").split(",") if entry.strip()]
    if secret := environment.get(ONE, "").strip():
        keys.append(_key("environment", secret, get_args(Scope), ONE))
    return keys


def _entry(text: str) -> Key:
    found = _ENTRY.fullmatch(text)
    if found is None:
        # Without quoting it, since it may well be a key.
        raise ConfigurationError(
            f"{SEVERAL} in the environment has an entry that is not NAME=KEY or NAME/SCOPE+SCOPE=KEY.",
            suggestions=("Write it as ada=KEY,prometheus/metrics=KEY.", f"For one key for everything use {ONE}."),
        )
    return _key(found["name"], found["secret"], (found["scopes"] or "inference").split("+"), SEVERAL)


def _key(name: str, secret: str, scopes: Iterable[str], variable: str) -> Key:
    if len(secret) < SHORTEST:
        raise ConfigurationError(
            f"The key {name!r} in {variable} is too short: it could be guessed.",
            suggestions=(f"Take {SHORTEST} characters or more; openssl rand -hex 32 makes good ones.",),
        )
    if unknown := set(scopes) - {*get_args(Scope)}:
        raise ConfigurationError(
            f"The key {name!r} in {variable} has an unknown scope {min(unknown)!r}.",
            suggestions=(f"Use {', '.join(get_args(Scope))}.",),
        )
    return Key.model_validate({"name": name, "sha256": digest(secret), "scopes": list(scopes)})
