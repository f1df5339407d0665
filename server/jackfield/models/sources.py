"""From a model's name to a folder with its files.

========================= ==================================================================
``starter``               the small model that comes through the package index
``path/to/model.gguf``    a GGUF file, converted into the cache
``org/name:Q4_K_M``       one on the Hugging Face Hub, by its quantization or its name, ``org/name:file.gguf``
``path/to/folder``        a folder in MLX or Hugging Face layout
``org/name[@revision]``   a repository on the Hugging Face Hub, unless there is such a folder
``NAME:4bit``             one of these, quantized here with ``jackfield models quantize``
========================= ==================================================================
"""

from pathlib import Path
from typing import Protocol

from jackfield.errors import ModelLoadError
from jackfield.models.folder import Folder
from jackfield.models.gguf_source import GGUFFile
from jackfield.models.hub import Hub
from jackfield.models.hub_gguf import HubGGUF
from jackfield.models.progress import SILENT, Progress
from jackfield.models.quantized import Quantized
from jackfield.models.starter import Starter


class Source(Protocol):
    """A place that models come from."""

    def matches(self, name: str) -> bool:
        """Whether this source is meant by ``name``; the first that says so fetches it."""
        ...

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The folder with config.json, model*.safetensors and the tokenizer's files; made under ``cache`` if need be.

        Raises:
            ModelLoadError: there is no such model, or it cannot be had.
        """
        ...


SOURCES: tuple[Source, ...] = (Starter(), Quantized(), HubGGUF(), GGUFFile(), Folder(), Hub())


def resolve(name: str, *, cache: Path, progress: Progress = SILENT, sources: tuple[Source, ...] = SOURCES) -> Path:
    """The local folder of the model ``name``.

    Raises:
        ModelLoadError: no source knows the name, or the one that does cannot deliver.
    """
    source = next((source for source in sources if source.matches(name)), None)
    if source is None:
        raise ModelLoadError(
            f"{name!r} is not the name of a model.",
            suggestions=(
                "Name a folder or a .gguf file, with ./ in front if it is in this folder.",
                "Name a model on the Hugging Face Hub: org/name, org/name@revision, or org/name:Q4_K_M (GGUF).",
                "Or take the model to try things with: starter",
            ),
        )
    return source.fetch(name, cache, progress)
