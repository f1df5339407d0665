"""No sequence of so many tokens twice in an answer, for requests that ask for it."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jackfield.hooks import LogitsProcessor, RequestInfo, Server, hookimpl

if TYPE_CHECKING:
    import mlx.core as mx

NAME = "logits-processor"

logger = logging.getLogger(__name__)


class Settings(BaseModel):
    """What ``[plugins.logits-processor]`` may say, and a request under ``jackfield.logits-processor``."""

    model_config = ConfigDict(extra="forbid")

    no_repeat: Annotated[int, Field(ge=0, le=64)] = 0
    """No sequence of so many tokens comes twice; 0 leaves the answer alone."""


class NoRepeat:
    """Forbids every token that would write a sequence of ``size`` tokens again.

    Only the answer counts: words of the prompt may be taken up. One of these is made for each choice of an answer, and
    called on the engine's thread at every step, so it reads each token once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._read: int | None = None
        """How many of the tokens have been read; None before the first call, which comes with the prompt alone."""
        self._followed: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        """What has come after each sequence of ``size - 1`` tokens."""

    def __call__(self, tokens: tuple[int, ...], logits: "mx.array") -> "mx.array":
        """The logits, float [vocabulary], with those of forbidden tokens at minus infinity."""
        # Not at the top: mlx must be imported after the server has set it up.
        import mlx.core as mx  # noqa: PLC0415

        forbidden = self._forbidden(tokens)
        if not forbidden:
            return logits
        mask = mx.zeros(logits.shape, dtype=mx.bool_)
        mask[mx.array(sorted(forbidden))] = True
        return mx.where(mask, mx.array(-mx.inf, dtype=logits.dtype), logits)

    def _forbidden(self, tokens: tuple[int, ...]) -> set[int]:
        if self._read is None:
            self._read = self._begin = len(tokens)
        before = self._size - 1
        for end in range(max(self._read, self._begin + before), len(tokens)):
            self._followed[tokens[end - before : end]].add(tokens[end])
        self._read = len(tokens)
        if len(tokens) - self._begin < before:
            return set()
        return self._followed.get(tokens[len(tokens) - before :], set())


class Plugin:
    """Gives each request its own processor."""

    def __init__(self) -> None:
        self._default = Settings()

    @hookimpl
    def configure(self) -> type[BaseModel]:
        """What holds for requests that say nothing."""
        return Settings

    @hookimpl
    def startup(self, server: Server, config: Settings) -> None:
        """Before the first request."""
        self._default = config

    @hookimpl
    def logits_processors(self, request: RequestInfo) -> Sequence[LogitsProcessor]:
        """What the request asks for, or else the settings; nothing costs nothing."""
        size = self._asked(request).no_repeat
        return [NoRepeat(size)] if size else []

    def _asked(self, request: RequestInfo) -> Settings:
        try:
            return Settings.model_validate(request.options[NAME]) if NAME in request.options else self._default
        except ValidationError as error:
            # A client's mistake: were it raised here, it would count as the plugin's failure.
            logger.warning("%s: options of %s are ignored: %s", request.id, NAME, error.errors()[0]["msg"])
            return self._default
