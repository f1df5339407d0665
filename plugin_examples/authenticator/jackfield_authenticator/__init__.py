"""API keys: who may ask, for what, and who goes first.

Of a key the settings hold the SHA-256 alone. For passwords that would be too fast a hash: there are few enough of them
to try. A key made here has 256 random bits, which nobody can go through at any speed, so a slow hash would protect
nothing, and cost every request its time.
"""

import hashlib
import hmac
import secrets
from typing import Annotated, Literal

import click
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection

from jackfield.hooks import Identity, Server, hookimpl

Priority = Literal["interactive", "normal", "background"]

PRIORITIES: dict[Priority, int] = {"interactive": -10, "normal": 0, "background": 60}
"""What each class adds to a request's own priority. Lower goes first, and a second of waiting counts as one less: what
runs in the background waits up to a minute for everything else, and no longer."""


class Key(BaseModel):
    """One key, and what it opens."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    """Whose it is, for logs and metrics."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key, in hexadecimal."""
    scopes: frozenset[Literal["inference", "admin", "metrics"]] = frozenset({"inference"})
    priority: Priority = "normal"


class Settings(BaseModel):
    """What ``[plugins.authenticator]`` may say."""

    model_config = ConfigDict(extra="forbid")

    keys: list[Key] = Field(default_factory=list)
    """Without any, nobody gets in."""


class Plugin:
    """Lets those in who have a key."""

    def __init__(self) -> None:
        self._keys: list[tuple[bytes, Identity]] = []

    @hookimpl
    def configure(self) -> type[BaseModel]:
        """The keys' hashes."""
        return Settings

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        """``jackfield new-key``."""
        cli.add_command(new_key)

    @hookimpl
    def startup(self, server: Server, config: Settings) -> None:
        """Before the first request."""
        self._keys = [(key.sha256.encode(), _identity(key)) for key in config.keys]

    @hookimpl
    async def authenticate(self, request: HTTPConnection) -> Identity | None:
        """Who holds this key; a coroutine, since it is quicker than the way to the plugin's thread and back."""
        key = _key(request)
        if not key:
            return None
        digest = hashlib.sha256(key.encode()).hexdigest().encode()
        # All of them, each in constant time: how long it takes must not tell how near a guess came.
        found = [identity for known, identity in self._keys if hmac.compare_digest(known, digest)]
        return found[0] if found else None


def _identity(key: Key) -> Identity:
    return Identity(key.name, frozenset(key.scopes), PRIORITIES[key.priority])


def _key(request: HTTPConnection) -> str:
    """As OpenAI's clients send it, or Anthropic's."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


@click.command()
@click.argument("name")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), default="normal", show_default=True)
def new_key(name: str, priority: str) -> None:
    """Make an API key for NAME, and what to write into the settings for it."""
    key = f"jack_{secrets.token_urlsafe(32)}"
    click.echo(f"The key, which is kept nowhere, so write it down:\n\n  {key}\n\nInto the TOML file of the server:\n")
    click.echo(f'[[plugins.authenticator.keys]]\nname = "{name}"')
    click.echo(f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\npriority = "{priority}"')
