"""What a plugin may do with the server that it is plugged into."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jackfield.events import Event
from jackfield.folders import data_dir
from jackfield.hooks.data import ChatMessage


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model, as it stands."""

    id: str
    context_length: int
    """In tokens; 0 while it is not in memory."""
    state: str
    """``unloaded``, ``loading``, ``ready``, ``recovering``, ``stopped`` or ``failed``."""
    statistics: dict[str, Any]
    """Counts and sizes, by the names in engine/statistics.py."""


class Server(Protocol):
    """The server, as one plugin sees it. All methods are the event loop's, but ``emit``, which any thread may call."""

    @property
    def url(self) -> str:
        """Where it is reached, without ``/v1``; empty before the port is known."""

    @property
    def data_dir(self) -> Path:
        """The plugin's own folder, for what has to outlive the server; made when it is first asked for."""

    def models(self) -> list[ModelInfo]:
        """All served models."""

    def plugins(self) -> list[dict[str, Any]]:
        """All plugins, as ``GET /v1/plugins`` lists them."""

    def emit(self, event: Event) -> None:
        """Tell everybody who listens."""

    async def complete(
        self, messages: Sequence[ChatMessage], *, model: str | None = None, max_tokens: int = 256
    ) -> str:
        """What a served model answers, greedily; it waits in line like any request, behind the clients' own.

        Raises:
            JackfieldError: it could not answer.
        """


def plugin_data_dir(name: str) -> Path:
    """A plugin's own folder, for its commands, which run without a server; made if it is not there.

    It is ``plugins/NAME`` in ``JACKFIELD_DATA_DIR``, or in the user's folder for such data.
    """
    folder = data_dir() / "plugins" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
