"""What ``jackfield models info`` tells of a model."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from jackfield.cli.diagnosis import COLUMN, Diagnosis, diagnose
from jackfield.errors import ModelLoadError
from jackfield.models import hub, starter
from jackfield.models.hub_gguf import HubGGUF
from jackfield.models.profile import read_profile
from jackfield.models.sizes import gigabytes
from jackfield.settings import Settings

LICENCE = re.compile(r"\A---\n.*?^license:\s*(?P<licence>\S+)$.*?^---$", re.S | re.M)
"""In the front matter of a model's card, as the Hub has it."""


@dataclass(frozen=True, slots=True)
class Card:
    """A model, here or not."""

    diagnosis: Diagnosis
    files: tuple[tuple[str, int], ...] | None
    """Names and bytes; None if nobody can be asked."""
    licence: str | None
    capabilities: tuple[str, ...] | None
    """None as long as its tokenizer is not here."""

    def as_json(self) -> dict[str, Any]:
        """See the command's --help."""
        found = self.diagnosis
        return {
            "name": found.model.name,
            "origin": found.model.origin,
            "licence": self.licence,
            "folder": str(found.model.folder) if found.model.folder else None,
            "downloaded": found.model.downloaded,
            "files": self.files and [{"name": name, "bytes": size} for name, size in self.files],
            "model_type": found.architecture.model_type,
            "parameters": found.architecture.parameters,
            "weights_type": found.weights_type,
            "context_length": found.architecture.context_length,
            "capabilities": self.capabilities and list(self.capabilities),
            "disk_bytes": sum(size for _, size in self.files) if self.files else found.disk_bytes,
            "plan": found.plan.as_json(),
        }

    def show(self) -> None:
        """Print it for people."""
        self.diagnosis.show()
        console = Console(highlight=False, soft_wrap=True)
        for name, text in self._rows():
            console.print(Text(f"{name:<{COLUMN}}  ", "bold").append(text, "none"))

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "", ""
        yield "Licence", self.licence or "not known"
        yield "Can do", ", ".join(self.capabilities) if self.capabilities else "known when it has been downloaded"
        for number, (name, size) in enumerate(self.files or ()):
            yield "" if number else "Files", f"{gigabytes(size):>9}  {name}"


def read_card(settings: Settings) -> Card:
    """What is known of the model that the settings name.

    Raises:
        JackfieldError: there is no such model.
    """
    diagnosis = diagnose(settings)
    folder, name = diagnosis.model.folder, settings.model
    on_hub = hub.Hub().matches(name) and not Path(name).expanduser().exists()
    files = _files(folder) if folder else hub.files(name) if on_hub else None
    repository = name.partition(":")[0] if HubGGUF().matches(name) else name if on_hub else None
    licence = (folder and _licence(folder)) or (hub.licence(repository) if repository else None)
    licence = "apache-2.0" if name == starter.NAME else licence
    return Card(diagnosis, files, licence, _capabilities(folder, name))


def _files(folder: Path) -> tuple[tuple[str, int], ...]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return tuple(sorted((str(file.relative_to(folder)), file.stat().st_size) for file in found))


def _licence(folder: Path) -> str | None:
    try:
        match = LICENCE.match((folder / "README.md").read_text("utf-8", errors="replace"))
    except OSError:
        return None
    return match["licence"] if match else None


def _capabilities(folder: Path | None, name: str) -> tuple[str, ...] | None:
    try:
        return read_profile(folder, name, None).capabilities if folder else None
    except ModelLoadError:
        return None
