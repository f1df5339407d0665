"""How much a key may ask for, by a clock that nobody sets."""

import math
import time
from dataclasses import dataclass, field

from jackfield.errors import RateLimitError
from jackfield.security.key import Key


@dataclass
class Bucket:
    """So much a minute, all of it at once if nothing was taken for a minute.

    It may be taken below zero, by what is known only afterwards, and then stays closed until that has come back.
    """

    per_minute: int
    _level: float = field(init=False)
    _filled: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._level = float(self.per_minute)

    @property
    def level(self) -> float:
        """What is in it now."""
        now = time.monotonic()
        self._level = min(self.per_minute, self._level + (now - self._filled) * self.per_minute / 60)
        self._filled = now
        return self._level

    def take(self, amount: float) -> None:
        """Less is in it."""
        self._level = self.level - amount

    def wait(self, wanted: float) -> float:
        """Seconds until so much is in it."""
        return max(0.0, (wanted - self.level) * 60 / self.per_minute)


class Allowance:
    """What is left to one key."""

    def __init__(self, key: Key) -> None:
        self.limits = (key.requests_per_minute, key.tokens_per_minute)
        self._name = key.name
        self._requests, self._tokens = (limit and Bucket(limit) for limit in self.limits)

    def take_request(self) -> None:
        """A request has come.

        Raises:
            RateLimitError: too many have, or their tokens were too many.
        """
        if self._requests and (wait := self._requests.wait(1)):
            raise RateLimitError(self._name, "requests", self._requests.per_minute, math.ceil(wait))
        # What a request takes is known only when it is answered: so one gets in while anything is left.
        if self._tokens and (wait := self._tokens.wait(1)):
            raise RateLimitError(self._name, "tokens", self._tokens.per_minute, math.ceil(wait))
        if self._requests:
            self._requests.take(1)

    def take_tokens(self, tokens: int) -> None:
        """So many have been read or generated."""
        if self._tokens:
            self._tokens.take(tokens)

    @property
    def headers(self) -> dict[str, str]:
        """How it stands, as OpenAI's clients know it."""
        buckets = {"requests": self._requests, "tokens": self._tokens}
        told: dict[str, str] = {}
        for name, bucket in buckets.items():
            if bucket:
                told[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
        return told
