"""Folders that are made once: whole or not at all, whoever else makes them at the same time or is killed at it."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.progress import Progress

POLL_S = 0.2
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def build_once(
    target: Path, build: Callable[[Path], None], progress: Progress, *, is_outdated: Callable[[], bool] = lambda: False
) -> Path:
    """The folder ``target``, filled by ``build(folder)`` if it is not there or outdated; until then the old one stays.

    Raises:
        ModelLoadError: the disk is full or the cache cannot be written, besides what ``build`` raises.
    """
    if target.is_dir() and not is_outdated():
        return target
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target, progress):
            if not target.is_dir() or is_outdated():
                _build(target, build)
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    prefix = f".{target.name}."
    # We hold the lock, so what is left of earlier attempts belongs to processes that were killed.
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        build(folder)
        folder.chmod(0o755)
        _sync(folder)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have the files on disk before the rename, so that a power cut cannot leave empty ones under the final name."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _lock(target: Path, progress: Progress) -> Iterator[None]:
    """Keep other processes from building the same target; the kernel drops the lock of one that dies."""
    with target.with_name(f"{target.name}.lock").open("w") as file:
        if not _try_lock(file.fileno()):
            with progress.task(f"Waiting for another process that prepares {target.name}"):
                while not _try_lock(file.fileno()):
                    time.sleep(POLL_S)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write under ``folder`` into errors that say what to do."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, str(folder), "JACKFIELD_CACHE_DIR") or ModelLoadError(
            f"The model cannot be prepared in {folder}: {error}.", suggestions=("Check the disk and try again.",)
        ) from error


def disk_error(error: OSError, folder: str, setting: str) -> ModelLoadError | None:
    """The error for a full disk or a folder that cannot be written, where ``setting`` chooses it; None for others."""
    if error.errno in FULL:
        return ModelLoadError(
            f"The disk is full: cannot write to {folder}.",
            suggestions=("Free some space.", f"Set {setting} to a folder on another disk."),
        )
    if error.errno in REFUSED:
        return ModelLoadError(
            f"The cache folder {folder} cannot be written: {error.strerror}.",
            suggestions=(f"Set {setting} to a folder that you may write to.",),
        )
    return None


def require_space(folder: Path, nbytes: int) -> None:
    """Refuse at once what could not end well: so many bytes are about to be written under ``folder``."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise ModelLoadError(
            f"Too little space in {folder.parent}: {nbytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free.",
            suggestions=("Free some space.", "Set JACKFIELD_CACHE_DIR to a folder on another disk."),
        )
