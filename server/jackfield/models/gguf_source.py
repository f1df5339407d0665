"""GGUF files on this machine, converted into the cache at first use."""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.convert import VERSION, convert
from jackfield.models.gguf import parts
from jackfield.models.gguf_names import SPLIT, parts_of
from jackfield.models.progress import Progress
from jackfield.models.quantized import write_origin
from jackfield.models.store import build_once, require_space


class GGUFFile:
    """The source of names that end in ``.gguf``."""

    def matches(self, name: str) -> bool:
        """By the ending alone."""
        return name.lower().endswith(".gguf")

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The converted folder."""
        path = place_of(name)
        status = [_status(part) for part in parts(path)]
        content = " ".join(f"{one.st_size} {one.st_mtime_ns}" for one in status)
        return Conversion(path.stem, str(path), content).made(path, cache, progress, name=str(path))


@dataclass(frozen=True, slots=True)
class Conversion:
    """What becomes of a file, whichever that is."""

    stem: str
    """The file's name, for people."""
    place: str
    """Where it is."""
    content: str
    """What it holds; another one when it changes."""

    def folder(self, cache: Path) -> Path:
        """Where it is, or would be."""
        return cache / "models" / f"{self._prefix}{_digest(f'{self.content} {VERSION}')}"

    @property
    def _prefix(self) -> str:
        stem = re.sub(r"[^\w.-]", "_", self.stem)[:80]
        return f"gguf-{stem}-{_digest(self.place)}-"

    def others(self, cache: Path) -> list[Path]:
        """What was converted from the same place before it changed."""
        return [
            one for one in (cache / "models").glob(f"{self._prefix}*") if one.is_dir() and one != self.folder(cache)
        ]

    def made(self, path: Path, cache: Path, progress: Progress, *, name: str, file: str = "") -> Path:
        """The folder, made from ``path`` if need be; ``name`` and ``file`` are noted in it."""

        def build(folder: Path) -> None:
            require_space(folder, sum(part.stat().st_size for part in parts(path)))
            convert(path, folder, progress)
            write_origin(folder, name, file)

        target = build_once(self.folder(cache), build, progress)
        for other in self.others(cache):  # whose space is given back
            shutil.rmtree(other, ignore_errors=True)
        return target


def place_of(name: str) -> Path:
    """Where a file is, or the first part of one that was split."""
    path = Path(name).expanduser()
    if SPLIT.fullmatch(path.name) is None:
        return path.resolve()
    # In Hugging Face's cache files are links to others, whose names do not tell which part they are.
    return path.with_name(parts_of(path.name)[0]).absolute()


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
        path.open("rb").close()
    except OSError as error:
        raise ModelLoadError(
            f"The GGUF file {path} cannot be read: {error.strerror}.",
            suggestions=(
                "Check the path and who may read it.",
                "A file on the Hugging Face Hub is named ORG/NAME:FILE.gguf, or by its quantization, ORG/NAME:Q4_K_M.",
            ),
        ) from error
    return status


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
