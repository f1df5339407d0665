"""Other servers that may answer, and the ways that a model's requests may go."""

import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0)]

OWN = "mlx"
"""The backend that is always there: the engine of this process."""

Capability = Literal["tools", "images", "structured_output", "logprobs"]
"""What a request may need that not every model or server can do."""


Dialect = Literal["openai", "vllm", "llama.cpp"]
"""Whose words beyond OpenAI's an upstream understands; Jackfield's are sent to ``openai`` as they are."""


class UpstreamSettings(BaseModel):
    """Another server that speaks OpenAI's API: a table ``[upstreams.NAME]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: str
    """Its base URL, as its clients have it: ``http://10.0.0.5:8000/v1``. It has to be there."""
    speaks: Dialect = "openai"
    """What it is, if it is one whose words for some things are other than Jackfield's: ``vllm`` or ``llama.cpp``."""
    api_key: SecretStr | None = None
    """The key that it wants to be shown; by default none is."""
    api_key_env: str | None = None
    """The environment variable that holds the key, which then stands in no file."""
    connect_seconds: Seconds = 5.0
    """How long it may take to be reached."""
    first_seconds: Seconds = 120.0
    """How long it may take until the first token."""
    idle_seconds: Seconds = 60.0
    """How long it may say nothing after that."""
    max_failures: Annotated[int, Field(ge=1)] = 5
    """So many failures in ``window_seconds`` and it is left alone for ``rest_seconds``."""
    window_seconds: Seconds = 30.0
    """How far apart they may be."""
    rest_seconds: Seconds = 15.0
    """How long it is left alone, or up to a fifth longer; then one request may try."""

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValueError("a base URL begins with http:// or https://, and has neither a password nor a query")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("set api_key or api_key_env, not both")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise ValueError(f"there is nothing in the environment variable {self.api_key_env}")
        return self

    @property
    def key(self) -> str | None:
        """What it wants to be shown."""
        if self.api_key_env is not None:
            return os.environ[self.api_key_env]
        return self.api_key.get_secret_value() if self.api_key else None


class RouteStep(BaseModel):
    """One way that a model's requests may go, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str
    """``mlx``, or the name of an upstream or of a plugin's backend."""
    model: str | None = None
    """What the upstream calls the model; by default what it is called here."""
    ready: bool = False
    """Only when it could answer at once: a model in memory, an upstream whose circuit is closed, or that has had no
    failure for ``window_seconds``."""
    max_queue: Annotated[int, Field(ge=0)] | None = None
    """Only when no more requests than that wait there for their first token."""
    context_length: Annotated[int, Field(ge=16)] | None = None
    """Only prompts that fit, as far as that can be told from their length."""
    capabilities: tuple[Capability, ...] | None = None
    """All that it can do of what not everybody can; by default it is tried."""
    min_seconds: Seconds | None = None
    """Only when the request's ``timeout`` leaves it so much time."""


def _steps(value: Any) -> Any:
    """Ways by their backends' names alone."""
    if not isinstance(value, list | tuple):
        return value
    return [{"backend": step} if isinstance(step, str) else step for step in value]


Route = Annotated[tuple[RouteStep, ...], BeforeValidator(_steps)]


def stays_here(route: Sequence[RouteStep]) -> bool:
    """Whether the engine of this process may answer."""
    return not route or any(step.backend == OWN for step in route)
