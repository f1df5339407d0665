"""The Hugging Face Hub's client: what repositories hold, downloads into the cache that all its tools share, and errors
that say what to do."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import (
    DryRunFileInfo,
    HfApi,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm

from jackfield.errors import ModelLoadError
from jackfield.models.downloads import download
from jackfield.models.progress import Progress, Task
from jackfield.models.store import disk_error

logger = logging.getLogger(__name__)

UNANSWERED = (HfHubHTTPError, httpx2.TransportError, OSError)
"""What its client raises when the Hub cannot be asked, or says nothing."""

Patterns = Sequence[str]
"""Of files' names, as for `fnmatch`."""


def fetch_files(
    repository: str, revision: str, wanted: Patterns, progress: Progress, unwanted: Patterns = (), *, title: str
) -> Path:
    """The snapshot's folder with these files; only what is not in the cache is downloaded, and nothing if offline."""
    with progress.task(title) as task:
        download(repository, listed(repository, revision, wanted, unwanted) or (), task)
        return snapshot(repository, revision, wanted, unwanted, task)


def snapshot(
    repository: str, revision: str, wanted: Patterns, unwanted: Patterns = (), task: Task | None = None
) -> Path:
    """The same for small files, which need no bar."""
    return Path(
        snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
            tqdm_class=_bars(task),
        )
    )


def cached_snapshot(repository: str, revision: str, wanted: Patterns = (), unwanted: Patterns = ()) -> Path | None:
    """The snapshot's folder, if all of these files are here, as far as it is known which there are; asks nobody."""
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Path(folder)


def listed(repository: str, revision: str, wanted: Patterns, unwanted: Patterns = ()) -> list[DryRunFileInfo] | None:
    """Files of a repository, and what would be downloaded of them; None if the Hub cannot be asked."""
    try:
        return snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
            tqdm_class=_bars(None),
            dry_run=True,
        )
    except UNANSWERED:
        logger.debug("the Hub does not tell the files of %s", repository, exc_info=True)
        return None


def names(repository: str, revision: str) -> list[str] | None:
    """Names of all files of a repository; None if the Hub cannot be asked."""
    try:
        siblings = HfApi().model_info(repository, revision=revision or None).siblings or []
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except UNANSWERED:
        logger.debug("the Hub does not tell the files of %s", repository, exc_info=True)
        return None
    return [one.rfilename for one in siblings]


def etags(repository: str, revision: str, files: Sequence[str]) -> list[str]:
    """What stands for the contents of each of these files."""
    urls = (hf_hub_url(repository, file, revision=revision or None) for file in files)
    return [get_hf_file_metadata(url, headers=build_hf_headers()).etag or url for url in urls]


def beginning(repository: str, revision: str, file: str, count: int) -> bytes:
    """The first bytes of a file, so many at most."""
    url = hf_hub_url(repository, file, revision=revision or None)
    headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}"}
    read = b""
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            read += chunk
            if len(read) >= count:
                break
    return read[:count]


def licence(repository: str, revision: str) -> str | None:
    """What the Hub says of a model's licence; None if it says nothing, or cannot be asked."""
    try:
        tags = HfApi().model_info(repository, revision=revision or None).tags or []
    except (*UNANSWERED, ValueError):
        logger.debug("the Hub does not tell the licence of %s", repository, exc_info=True)
        return None
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


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
def explained(repository: str, revision: str) -> Iterator[None]:
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


def unreachable(repository: str, revision: str = "", error: Exception | None = None) -> ModelLoadError:
    """The error for what is not here, while the Hub does not answer."""
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
    (LocalEntryNotFoundError, unreachable),
    (HFValidationError, _bad_name),
)
"""By kind of error, sub-classes first."""
