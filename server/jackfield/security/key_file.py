"""The file of keys: JSON, for the server's user alone, always whole."""

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jackfield.errors import ConfigurationError
from jackfield.folders import data_dir
from jackfield.security.key import Key

VERSION = 1
FORBIDDEN = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP
"""Whoever may write here lets in whom they like; and names are nobody else's business."""


class Contents(BaseModel):
    """What the file says."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, le=VERSION)] = VERSION
    keys: list[Key] = Field(default_factory=list)


def usual_place() -> Path:
    """Where the file is unless the setting ``keys_file`` says otherwise."""
    return data_dir() / "keys.json"


def read(file: Path) -> list[Key] | None:
    """The keys; None if there is no such file.

    Raises:
        ConfigurationError: it is damaged, or others may read or change it.
    """
    try:
        with file.open("rb") as opened:
            _check_mode(file, os.fstat(opened.fileno()).st_mode)
            text = opened.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refusal(file, f"cannot be read: {error.strerror}", "Check its owner and its mode.") from error
    return _parse(file, text)


def change(file: Path, edit: Callable[[Sequence[Key]], Sequence[Key]]) -> None:
    """Replace the keys by what ``edit`` makes of them; whoever reads meanwhile sees the old ones or the new ones.

    Raises:
        ConfigurationError: the file is not to be trusted, or cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A file of its own, since the other one is replaced.
        with file.with_name(f".{file.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _write(file, edit(read(file) or ()))
    except OSError as error:
        raise _refusal(file, f"cannot be written: {error.strerror}", "Choose another place: keys_file.") from error


def _write(file: Path, keys: Sequence[Key]) -> None:
    contents = Contents(keys=list(keys)).model_dump(mode="json", exclude_none=True)
    # Made with mode 0600, whatever the umask.
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            json.dump(contents, opened, indent=2)
            opened.write("\n")
            opened.flush()
            os.fsync(opened.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink()
        raise


def _check_mode(file: Path, mode: int) -> None:
    if mode & FORBIDDEN:
        raise _refusal(file, f"can be read or changed by others (mode {mode & 0o777:o})", f"chmod 600 {file}")


def _parse(file: Path, text: bytes) -> list[Key]:
    try:
        keys = Contents.model_validate_json(text).keys
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the whole file"
        raise _refusal(
            file, f"is damaged: {where}: {problem['msg']}", "Mend it, or restore it from a backup."
        ) from None
    names = [key.name for key in keys]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise _refusal(file, f"is damaged: it has two keys called {twice!r}", "Rename or remove one of them.")
    return keys


def _refusal(file: Path, what: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"The file of API keys {file} {what}.", suggestions=(hint,))
