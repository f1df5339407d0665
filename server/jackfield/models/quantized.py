"""Models that were quantized on this machine, by names like ``org/name:4bit`` or ``./model:8bit-g32``."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.folder import PATH_STARTS, read_json
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

    def anywhere(self) -> "Recipe":
        """The same, by a name that means it in every folder, and when the model that it was made from is gone."""
        path = Path(self.source).expanduser()
        own = self.source.startswith(PATH_STARTS) or path.exists()
        return replace(self, source=str(path.resolve())) if own else self

    def folder(self, cache: Path) -> Path:
        """Where it is, or would be."""
        origin = self.anywhere().source
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


def write_origin(folder: Path, name: str, file: str = "", *, state: str = "") -> None:
    """Note in a folder of the cache what it was made from.

    Args:
        folder: that one.
        name: what it is served by.
        file: which one it is, if the name does not say it.
        state: of what it was made from, see `state_of`.
    """
    noted = {"name": name, "file": file, "state": state}
    (folder / ORIGIN).write_text(json.dumps({key: value for key, value in noted.items() if value}), "utf-8")


def state_of(source: Path) -> str:
    """In which state a model's files are: whoever writes them anew changes it."""
    status = ((file.name, file.stat()) for file in sorted(source.iterdir()) if file.is_file())
    content = "\n".join(f"{name} {one.st_size} {one.st_mtime_ns}" for name, one in status)
    return hashlib.sha256(content.encode()).hexdigest()


def is_outdated(folder: Path, state: str) -> bool:
    """Whether a copy is there that was made from files in another state."""
    return folder.is_dir() and read_json(folder / ORIGIN).get("state", state) != state


def read_origin(folder: Path) -> tuple[str, str] | None:
    """Name and file that are noted there; None if nothing is."""
    noted = read_json(folder / ORIGIN)
    name, file = noted.get("name"), noted.get("file", "")
    return (name, file) if isinstance(name, str) and isinstance(file, str) else None
