"""Who may ask the server: the file of keys, those of the environment, and the address."""

import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from jackfield.address import place
from jackfield.doctor.finding import Finding, failure, ok, warning
from jackfield.hooks.calls import Hooks
from jackfield.security import key_file
from jackfield.security.key import Key
from jackfield.security.keyring import Keyring, from_environment
from jackfield.settings import Settings

FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def key_checks(settings: Settings, hooks: Hooks, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether keys are in order, and whether the address wants some.

    Raises:
        ConfigurationError: the file of keys or a variable cannot be trusted.
    """
    file = settings.keys_file or key_file.usual_place()
    listed, own = key_file.read(file), from_environment(environment)
    # Two of the same name are refused by whoever serves.
    asks = Keyring(file, environment).asks or hooks.has("authenticate")
    if listed is not None:
        yield from _mode(file)
    yield from _expired(listed or (), alone=not own and not hooks.has("authenticate"))
    if listed == [] and not own and not hooks.has("authenticate"):
        yield warning("keys", f"{file} has no keys, so nobody is let in.", "Make one: jackfield keys create NAME.")
    yield _exposure(settings, asks=asks, count=len(listed or ()) + len(own))


def _mode(file: Path) -> Iterator[Finding]:
    mode = file.stat().st_mode
    if mode & FOR_OTHERS:
        yield warning("keys", f"Others may read {file} (mode {mode & 0o777:o}).", f"chmod 600 {file}")


def _expired(keys: list[Key] | tuple[Key, ...], *, alone: bool) -> Iterator[Finding]:
    expired = [key.name for key in keys if key.expired]
    if not expired:
        return
    advice = f"Make new ones, or take them out: jackfield keys revoke {expired[0]}."
    told = f"Expired: {', '.join(expired)}."
    if alone and len(expired) == len(keys):
        yield failure("keys", f"{told} There are no others, so nobody is let in.", advice)
    else:
        yield warning("keys", told, advice)


def _exposure(settings: Settings, *, asks: bool, count: int) -> Finding:
    here = place(settings.host, settings.port)
    if asks:
        return ok("keys", f"Requests need one; {count} are known." if count else "Requests need one.", count=count)
    if _is_loopback(settings.host):
        return ok("keys", f"Nobody needs one, and only this machine reaches {here}.", count=0)
    told = f"Everybody who reaches {here} can use the server: it asks for no key."
    advice = ("Make a key: jackfield keys create NAME.", "Or listen on this machine alone: --host 127.0.0.1.")
    if settings.open_to_network:
        return warning("keys", told, *advice, count=0)
    return failure("keys", f"{told} It does not start like that.", *advice, count=0)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
