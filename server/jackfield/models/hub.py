"""Models on the Hugging Face Hub, in the cache that all its tools share."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError

from jackfield.errors import ModelLoadError
from jackfield.models import hub_client
from jackfield.models.adapter_folder import CONFIG, is_adapter
from jackfield.models.folder import check_folder, read_config
from jackfield.models.gguf_names import quantizations
from jackfield.models.hub_client import cached_snapshot, explained, fetch_files, listed, snapshot
from jackfield.models.progress import Progress

NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>\w[\w./-]*))?", re.ASCII)

# Data only: no Python files and no pickles. Weights in sub-folders are other versions of the model.
WANTED = ("*.json", "model*.safetensors", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model")
UNWANTED = ("*/*",)
CONFIGS = ("config.json", CONFIG)
POOLING = "1_Pooling/config.json"
"""The one file of a sub-folder that counts, in embedding models, which have a modules.json."""


class AdapterError(ModelLoadError):
    """What was to be a model is an adapter for one."""


class Hub:
    """The source of names like ``org/name`` and ``org/name@revision``."""

    def matches(self, name: str) -> bool:
        """By the form of the name."""
        return NAME.fullmatch(name) is not None and ".." not in name

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The snapshot's folder; only what is not in Hugging Face's cache is downloaded, and nothing if offline."""
        repository, _, revision = name.partition("@")
        with explained(repository, revision):
            # First what is small, to refuse before many gigabytes what cannot be served.
            _look_at(name)
            folder = fetch_files(repository, revision, WANTED, progress, UNWANTED, title=f"Downloading {name}")
            if (folder / "modules.json").exists():
                snapshot(repository, revision, (POOLING,))
        try:
            check_folder(folder)
        except ModelLoadError:
            _refuse_gguf(name)
            raise
        return folder


def _look_at(name: str) -> Path:
    """The snapshot's folder with nothing but its config.

    Raises:
        ModelLoadError: it cannot be served.
    """
    repository, _, revision = name.partition("@")
    folder = snapshot(repository, revision, CONFIGS, UNWANTED)
    if is_adapter(folder):
        raise AdapterError(
            f"{name} is an adapter, and no model.",
            suggestions=(f"Serve it with its model: jackfield serve --model MODEL --adapter NAME={name}",),
        )
    if not (folder / "config.json").exists():
        _refuse_gguf(name)
    check_folder(folder, weights=False)
    return folder


def _refuse_gguf(name: str) -> None:
    """Tell how to name the GGUF files of a repository that has no other weights.

    Raises:
        ModelLoadError: it is one.
    """
    repository, _, revision = name.partition("@")
    names = hub_client.names(repository, revision) or ()
    found = quantizations(names)
    if found and not any(name.endswith(".safetensors") for name in names):
        best = next((tag for tag in ("Q4_K_M", "Q8_0") if tag in found), found[0])
        raise ModelLoadError(
            f"{name} holds GGUF files, of which one has to be named.",
            suggestions=(f"Take this one: {name}:{best}", f"There are: {', '.join(found)}."),
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known of a repository before its weights are downloaded."""

    config: dict[str, Any]
    folder: Path | None
    """Where the model is, if the cache holds all of it."""
    missing_bytes: int | None
    """What would still be downloaded; None if the Hub cannot be asked."""


def look_up(name: str) -> Listing | None:
    """Ask the cache and the Hub about ``org/name[@revision]``, without its weights; None if neither can answer.

    Raises:
        ModelLoadError: there is no such model, or it is one that cannot be served.
    """
    repository, _, revision = name.partition("@")
    if (folder := cached(name)) is not None:
        return Listing(read_config(folder), folder, 0)
    try:
        with explained(repository, revision):
            folder = _look_at(name)
    except ModelLoadError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            return None
        raise
    return Listing(read_config(folder), None, _missing_bytes(repository, revision))


def cached(name: str) -> Path | None:
    """The folder of ``org/name[@revision]``, if all of its files are here."""
    repository, _, revision = name.partition("@")
    folder = cached_snapshot(repository, revision, WANTED, UNWANTED)
    try:
        if folder is not None:
            check_folder(folder)
    except ModelLoadError:
        return None
    return folder


def files(name: str) -> tuple[tuple[str, int], ...] | None:
    """Names and bytes of what would be downloaded of ``org/name[@revision]``; None if the Hub cannot be asked."""
    repository, _, revision = name.partition("@")
    found = listed(repository, revision, WANTED, UNWANTED)
    return None if found is None else tuple(sorted((file.filename, file.file_size or 0) for file in found))


def licence(name: str) -> str | None:
    """What the Hub says of a model's licence; None if it says nothing, or cannot be asked."""
    repository, _, revision = name.partition("@")
    return hub_client.licence(repository, revision)


def _missing_bytes(repository: str, revision: str) -> int | None:
    found = listed(repository, revision, WANTED, UNWANTED)
    return None if found is None else sum(file.file_size or 0 for file in found if file.will_download)
