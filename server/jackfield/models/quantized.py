"""Models that were quantized on this machine, by names like ``org/name:4bit`` or ``./model:8bit-g32``."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.folder import read_json
from jackfield.models.progress import Progress

NAME = re.compile(r"(?P<source>.+):(?P<bits>[234568])bit(-g(?P<group>32|64|128))?", re.ASCII)
GROUP = 64
"""Weights that share a scale, unless the name says otherwise."""

ORIGIN = "jackfield.json"
"""The file in a folder of the cache that says what it was made from."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model, and how it is quantized."""

    source: str
    """The name of the model as it is."""
    bits: int
    group_size: int = GROUP

    @property
    def tag(self) -> str:
        """What its name has behind the colon."""
        return f"{self.bits}bit" if self.group_size == GROUP else f"{self.bits}bit-g{self.group_size}"

    @property
    def name(self) -> str:
        """What it is served by."""
        return f"{self.source}:{self.tag}"

    def folder(self, cache: Path) -> Path:
        """Where it is, or would be."""
        path = Path(self.source).expanduser()
        origin = str(path.resolve()) if path.exists() else self.source
        stem = re.sub(r"[^\w.-]", "_", origin.rpartition("/")[2])[:80]
        digest = hashlib.sha256(origin.encode()).hexdigest()[:16]
        return cache / "models" / f"quantized-{stem}-{self.bits}bit-g{self.group_size}-{digest}"


def recipe(name: str) -> Recipe | None:
    """What a name says; None if it is not of this form, or a file's."""
    match = NAME.fullmatch(name)
    if match is None or Path(name).expanduser().exists():
        return None
    return Recipe(match["source"], int(match["bits"]), int(match["group"] or GROUP))


class Quantized:
    """The source of names that end in ``:4bit`` and the like."""

    def matches(self, name: str) -> bool:
        """By the ending."""
        return recipe(name) is not None

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The folder that `quantize.quantize` has made; that takes long, so it is not done unasked."""
        found = recipe(name)
        assert found is not None  # noqa: S101 - see matches
        folder = found.folder(cache)
        if not folder.is_dir():
            group = "" if found.group_size == GROUP else f" --group-size {found.group_size}"
            raise ModelLoadError(
                f"{found.source} has not been quantized to {found.bits} bits on this machine.",
                suggestions=(f"Do it: jackfield models quantize {found.source} --bits {found.bits}{group}",),
            )
        return folder


def write_origin(folder: Path, name: str, file: str = "") -> None:
    """Note in a folder of the cache what it was made from, and which file that is if the name does not say it."""
    (folder / ORIGIN).write_text(json.dumps({"name": name} | ({"file": file} if file else {})), "utf-8")


def read_origin(folder: Path) -> tuple[str, str] | None:
    """Name and file that are noted there; None if nothing is."""
    noted = read_json(folder / ORIGIN)
    name, file = noted.get("name"), noted.get("file", "")
    return (name, file) if isinstance(name, str) and isinstance(file, str) else None
