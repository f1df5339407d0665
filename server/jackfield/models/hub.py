"""Models on the Hugging Face Hub, in the cache that all its tools share."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import DryRunFileInfo, HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from jackfield.errors import ModelLoadError
from jackfield.models.downloads import download
from jackfield.models.folder import check_folder, read_config
from jackfield.models.progress import Progress, Task
from jackfield.models.store import disk_error

logger = logging.getLogger(__name__)

NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>\w[\w./-]*))?", re.ASCII)

# Data only: no Python files and no pickles. Weights in sub-folders are other versions of the model.
WANTED = ("*.json", "model*.safetensors", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model")
UNWANTED = ("*/*",)
POOLING = "1_Pooling/config.json"
"""The one file of a sub-folder that counts, in embedding models, which have a modules.json."""


class Hub:
    """The source of names like ``org/name`` and ``org/name@revision``."""

    def matches(self, name: str) -> bool:
        """By the form of the name."""
        return NAME.fullmatch(name) is not None and ".." not in name

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The snapshot's folder; only what is not in Hugging Face's cache is downloaded, and nothing if offline."""
        repository, _, revision = name.partition("@")
        with _explained(repository, revision):
            # First what is small, to refuse before many gigabytes what cannot be served.
            folder = _download(repository, revision, ("config.json",), None)
            check_folder(folder, weights=False)
            with progress.task(f"Downloading {name}") as task:
                download(repository, _listed(repository, revision) or (), task)
                folder = _download(repository, revision, WANTED, task)
            if (folder / "modules.json").exists():
                _download(repository, revision, (POOLING,), None, unwanted=())
        check_folder(folder)
        return folder


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
    if (folder := _cached(repository, revision)) is not None:
        return Listing(read_config(folder), folder, 0)
    try:
        with _explained(repository, revision):
            folder = _download(repository, revision, ("config.json",), None)
            check_folder(folder, weights=False)
    except ModelLoadError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            return None
        raise
    return Listing(read_config(folder), None, _missing_bytes(repository, revision))


def cached(name: str) -> Path | None:
    """The folder of ``org/name[@revision]``, if all of its files are here."""
    repository, _, revision = name.partition("@")
    return _cached(repository, revision)


def _cached(repository: str, revision: str) -> Path | None:
    """The snapshot's folder, if all of its files are here."""
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
        check_folder(folder)
    except (LocalEntryNotFoundError, HFValidationError, ModelLoadError):
        return None
    return folder


def files(name: str) -> tuple[tuple[str, int], ...] | None:
    """Names and bytes of what would be downloaded of ``org/name[@revision]``; None if the Hub cannot be asked."""
    repository, _, revision = name.partition("@")
    found = _listed(repository, revision)
    return None if found is None else tuple(sorted((file.filename, file.file_size or 0) for file in found))


def licence(name: str) -> str | None:
    """What the Hub says of a model's licence; None if it says nothing, or cannot be asked."""
    repository, _, revision = name.partition("@")
    try:
        tags = HfApi().model_info(repository, revision=revision or None).tags or []
    except (HfHubHTTPError, OSError, ValueError):
        logger.debug("the Hub does not tell the licence of %s", repository, exc_info=True)
        return None
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


def _missing_bytes(repository: str, revision: str) -> int | None:
    found = _listed(repository, revision)
    return None if found is None else sum(file.file_size or 0 for file in found if file.will_download)


def _listed(repository: str, revision: str) -> list[DryRunFileInfo] | None:
    """The files of a repository that are served; None if the Hub cannot be asked."""
    try:
        return snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            tqdm_class=_bars(None),
            dry_run=True,
        )
    except (HfHubHTTPError, OSError):  # config.json came from the cache
        logger.debug("the Hub does not tell the files of %s", repository, exc_info=True)
        return None


def _download(
    repository: str,
    revision: str,
    patterns: tuple[str, ...],
    task: Task | None,
    unwanted: tuple[str, ...] = UNWANTED,
) -> Path:
    return Path(
        snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=list(unwanted),
            tqdm_class=_bars(task),
        )
    )


def _bars(task: Task | None) -> type[tqdm]:
    """A class of invisible bars that tell ``task`` what the download is about to show.

    Some versions show a bar of bytes received and one of bytes written, others one bar: the farthest counts.
    """
    lock = threading.Lock()
    known = {"done": 0, "total": 0}

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self.counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            with lock:
                self.n += n or 0
                if task is not None and self.counts_bytes:
                    _tell(task, known, int(self.n), int(self.total or 0))

    return Bar


def _tell(task: Task, known: dict[str, int], done: int, total: int) -> None:
    if total > known["total"]:
        known["total"] = total
        task.expect(total)
    if done > known["done"]:
        task.advance(done - known["done"])
        known["done"] = done


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turn what the Hub's client raises into errors that say what to do."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        logger.debug("the Hub's client failed", exc_info=True)
        raise _translated(repository, revision, error) from error


def _translated(repository: str, revision: str, error: Exception) -> ModelLoadError:
    if isinstance(error, OSError) and (refusal := disk_error(error, "of the Hugging Face Hub", "HF_HOME")):
        return refusal
    explain = next((explain for kind, explain in EXPLANATIONS if isinstance(error, kind)), _failed)
    return explain(repository, revision, error)


def _gated(repository: str, revision: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{repository} is gated: its owners ask you to accept their terms first.",
        suggestions=(
            f"Accept them on its page, https://huggingface.co/{repository}",
            "Then log in with: hf auth login (or set HF_TOKEN).",
        ),
    )


def _no_revision(repository: str, revision: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{repository} on the Hugging Face Hub has no revision {revision or 'main'!r}.",
        suggestions=("Name a branch, tag or commit that its page lists.",),
    )


def _no_repository(repository: str, revision: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"There is no {repository} on the Hugging Face Hub, and no such folder here.",
        suggestions=("Check the spelling.", "If it is private, log in with: hf auth login (or set HF_TOKEN)."),
    )


def _offline(repository: str, revision: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"The Hugging Face Hub cannot be reached, and {repository} is not (or not wholly) in the cache.",
        suggestions=(
            "Check the network, HTTPS_PROXY and HF_HUB_OFFLINE; a mirror is named with HF_ENDPOINT.",
            "Serve a folder or a .gguf file on this machine, or the model that comes with the package index: starter",
        ),
    )


def _bad_name(repository: str, revision: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(f"{repository!r} is not a name on the Hub: {error}", suggestions=("Check the spelling.",))


def _failed(repository: str, revision: str, error: Exception) -> ModelLoadError:
    if isinstance(error, HfHubHTTPError) and error.response.status_code == HTTPStatus.UNAUTHORIZED:
        return _no_repository(repository, revision, error)
    return ModelLoadError(
        f"The download of {repository} failed: {type(error).__name__}: {error}",
        suggestions=("Try again: what was downloaded is kept.", "Check the network."),
    )


EXPLANATIONS: tuple[tuple[type[Exception], Callable[[str, str, Exception], ModelLoadError]], ...] = (
    (GatedRepoError, _gated),
    (RevisionNotFoundError, _no_revision),
    (RepositoryNotFoundError, _no_repository),
    (LocalEntryNotFoundError, _offline),
    (HFValidationError, _bad_name),
)
"""By kind of error, sub-classes first."""
