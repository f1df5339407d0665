"""The plugin's settings: ``[plugins.dashboard]`` of the server's TOML file."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Everything that can be set, with its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: Annotated[int, Field(ge=1, le=5000)] = 500
    """The last requests that are listed."""
    minutes: Annotated[int, Field(ge=1, le=60)] = 15
    """How far back the charts go."""
    most_watchers: Annotated[int, Field(ge=1)] = 16
    """Open pages at the same time."""
