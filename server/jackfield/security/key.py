"""An API key: what is kept of it, and what it opens.

Kept is the SHA-256 alone. For passwords that would be too fast a hash: there are few enough of them to try. A key made
here has 256 random bits, which nobody can go through at any speed, so a slow hash would protect nothing, and cost every
request its time.
"""

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from jackfield.hooks.data import Identity

Scope = Literal["inference", "admin", "metrics"]
Priority = Literal["interactive", "normal", "background"]

PRIORITIES: dict[Priority, int] = {"interactive": -10, "normal": 0, "background": 60}
"""What each class adds to a request's own priority. Lower goes first, and a second of waiting counts as one less: what
runs in the background waits up to a minute for everything else, and no longer."""

MARK = "jackfield_"
"""What keys begin with, so that those who look for leaked ones recognise them."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"

Limit = Annotated[int, Field(ge=1)]


class Key(BaseModel):
    """One key, without the key itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    """Whose it is, for logs and for what is stored: so it outlives the key."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key, in hexadecimal."""
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset[Scope]({"inference"})
    priority: Priority = "normal"
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    """Of prompts and answers, cached or not."""
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    @property
    def identity(self) -> Identity:
        """As requests carry it."""
        return Identity(self.name, frozenset(self.scopes), PRIORITIES[self.priority])

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


def new_secret() -> str:
    """A key that nobody guesses."""
    return MARK + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
