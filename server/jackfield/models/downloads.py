"""Files of the Hub that are downloaded from where an earlier attempt came to.

The Hub's own client goes on after a broken connection, but throws away what it has when it gives up or is ended
(huggingface_hub 2.x, ``_download_to_tmp_and_move``). So files are put into its cache before it looks for them there:
``blobs/ETAG.incomplete`` while they grow, as older versions of it had them, ``blobs/ETAG`` when they are whole.
What is taken for granted about that client is in tests/test_hub_contract.py.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BufferedRandom
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import DryRunFileInfo, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm

from jackfield.errors import ModelLoadError
from jackfield.models.progress import Task

AT_ONCE = 4
"""Files that are downloaded at the same time."""
SHA256_DIGITS = 64
"""Large files have their SHA-256 as ETag, others a hash of Git's."""


class _Ended(Exception):
    """The download of another file has failed, or somebody has pressed Ctrl-C."""


def download(repository: str, files: Iterable[DryRunFileInfo], task: Task) -> None:
    """Put those of ``files`` that are missing into Hugging Face's cache.

    Raises:
        ModelLoadError: what was there already was not a part of the file.
        Exception: whatever the Hub's client raises.
    """
    missing = [file for file in files if file.will_download and _goes_over_http(file)]
    task.expect(sum(file.file_size or 0 for file in missing))
    progress = _Shared(task)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(_download, repository, file, progress) for file in missing]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            progress.ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _goes_over_http(file: DryRunFileInfo) -> bool:
    return (file.file_size or 0) <= constants.MAX_HTTP_DOWNLOAD_SIZE


class _Shared:
    """The task that several files are part of."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._lock = threading.Lock()
        self.ended = threading.Event()

    def advance(self, amount: int) -> None:
        """So many bytes more are here.

        Raises:
            _Ended: no more are wanted.
        """
        if self.ended.is_set():
            raise _Ended
        if amount:
            with self._lock:
                self._task.advance(amount)

    def bars(self) -> type[tqdm]:
        """A class of invisible bars for the Hub's client."""
        shared = self

        class Bar(tqdm):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                options.pop("name", None)
                super().__init__(*arguments, **options | {"disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                shared.advance(int(n or 0))

        return Bar


def _download(repository: str, file: DryRunFileInfo, progress: _Shared) -> None:
    url = hf_hub_url(repository, file.filename, revision=file.commit_hash)
    headers = build_hf_headers()
    metadata = get_hf_file_metadata(url, headers=headers)
    if metadata.etag is None or metadata.size is None:
        return  # the Hub's client will see to it
    if urlsplit(url).netloc != urlsplit(metadata.location).netloc:
        headers.pop("authorization", None)  # the key is for the Hub, not for where its files are
    blob = _repository(file) / "blobs" / metadata.etag
    partial = blob.with_name(f"{blob.name}.incomplete")
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    with partial.open("r+b") as part:
        if _is_taken(part) or blob.exists():
            return
        start = _kept(part, metadata)
        progress.advance(start)
        _go_on(part, start, metadata, headers, progress)
        if start and _digest(part) != metadata.etag:
            partial.unlink()
            raise ModelLoadError(
                f"What an earlier download left of {file.filename} was damaged.",
                suggestions=("Download the model again.",),
            )
        partial.rename(blob)


def _repository(file: DryRunFileInfo) -> Path:
    """The repository's folder in the cache, which holds ``snapshots/COMMIT/FILE`` and ``blobs``."""
    return Path(file.local_path).parents[len(Path(file.filename).parts) + 1]


def _is_taken(part: BufferedRandom) -> bool:
    """Whether another process downloads the same file; the kernel drops the lock of one that dies."""
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _kept(part: BufferedRandom, metadata: HfFileMetadata) -> int:
    """How much of it is there already; nothing, where nobody could tell whether it belongs to the rest."""
    start = part.seek(0, os.SEEK_END)
    if len(metadata.etag or "") == SHA256_DIGITS and start <= (metadata.size or 0):
        return start
    part.seek(0)
    part.truncate()
    return 0


def _digest(part: BufferedRandom) -> str:
    part.seek(0)
    return hashlib.file_digest(part, "sha256").hexdigest()


def _go_on(
    part: BufferedRandom, start: int, metadata: HfFileMetadata, headers: dict[str, str], progress: _Shared
) -> None:
    http_get(
        metadata.location,
        part,
        resume_size=start,
        headers=headers,
        expected_size=metadata.size,
        tqdm_class=progress.bars(),
    )
    part.flush()
