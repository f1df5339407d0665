"""What can be set in ``[plugins.compression]``."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Strategy = Literal["extractive", "window", "summary"]


class Settings(BaseModel):
    """How conversations are made shorter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: tuple[Strategy, ...] = ("extractive", "window")
    """What to do, in this order, each only as far as the ones before were not enough."""
    target: float = Field(default=0.5, ge=0.1, le=0.9)
    """Compress down to this share of the room: of what the system prompt, the tools and the last user message leave."""
    head_lines: int = Field(default=20, ge=1, le=1000)
    """Lines that are kept from the beginning of a long output."""
    tail_lines: int = Field(default=20, ge=1, le=1000)
    """Lines that are kept from its end."""
    matching_lines: int = Field(default=20, ge=0, le=1000)
    """Lines in between that are kept because they share words with the question."""
    summary_tokens: int = Field(default=256, ge=16, le=4096)
    """The longest a summary may be."""
    summary_seconds: float = Field(default=40, gt=0, le=600)
    """How long to wait for a summary before doing without; keep it below the server's limit for plugins."""
    remember: int = Field(default=64, ge=0, le=100_000)
    """Compressions that are remembered, with their summaries and what was shortened."""
    remember_on_disk: bool = True
    """Whether to remember over restarts where conversations were compressed: digests and numbers, no text."""

    @field_validator("strategy", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not names:
            raise ValueError(f"name one or more of: {', '.join(get_args(Strategy))}")
        unknown = [str(name) for name in names if name not in get_args(Strategy)]
        if unknown:
            raise ValueError(f"there is no {unknown[0]!r}; take from: {', '.join(get_args(Strategy))}")
        if len(set(names)) < len(names):
            raise ValueError("name each strategy once")
        return tuple(names)

    @model_validator(mode="after")
    def _summaries_are_remembered(self) -> Self:
        if "summary" in self.strategy and not self.remember:
            raise ValueError("set remember to 1 or more: without it every turn would wait for a new summary")
        return self
