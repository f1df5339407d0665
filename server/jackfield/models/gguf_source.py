"""GGUF files on this machine, converted into the cache at first use."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.convert import VERSION, convert
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
        path = Path(name).expanduser().resolve()
        status = _status(path)
        place, content = _digest(str(path)), _digest(f"{status.st_size} {status.st_mtime_ns} {VERSION}")
        stem = re.sub(r"[^\w.-]", "_", path.stem)[:80]
        target = cache / "models" / f"gguf-{stem}-{place}-{content}"

        def build(folder: Path) -> None:
            require_space(folder, status.st_size)
            convert(path, folder, progress)
            write_origin(folder, str(path))

        build_once(target, build, progress)
        _remove_older(target, f"gguf-{stem}-{place}-")
        return target


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
        path.open("rb").close()
    except OSError as error:
        raise ModelLoadError(
            f"The GGUF file {path} cannot be read: {error.strerror}.",
            suggestions=(
                "Check the path and who may read it.",
                "A file on the Hugging Face Hub has to be downloaded first: hf download ORG/NAME FILE.gguf",
            ),
        ) from error
    return status


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _remove_older(target: Path, prefix: str) -> None:
    """Give back the space of what was converted from the same file before it changed."""
    for other in target.parent.glob(f"{prefix}*"):
        if other.is_dir() and other != target:
            shutil.rmtree(other, ignore_errors=True)
