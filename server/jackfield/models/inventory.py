"""What models take of the disk: Hugging Face's cache, and what Jackfield has fetched, converted or quantized itself.

Folders and GGUF files of the user's are none of its business.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, CacheNotFound, constants, scan_cache_dir

from jackfield.errors import ModelLoadError
from jackfield.models import convert, starter
from jackfield.models.adapter_folder import MLX, PEFT, base_model, is_adapter, is_whole
from jackfield.models.folder import check_folder
from jackfield.models.gguf_source import place_of
from jackfield.models.hub_gguf import means
from jackfield.models.quantized import read_origin, recipe

Kind = Literal["hub", "starter", "gguf", "quantized", "adapter"]

FOLDER = re.compile(r"(?P<kind>starter|gguf|quantized)-.+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stored:
    """A model on this machine that can be removed."""

    name: str
    """As it is served by."""
    kind: Kind
    folder: Path
    nbytes: int
    used: float
    """When it was last read, in seconds since 1970, as far as the file system notes that."""
    revision: str = ""
    """The commit, of those from the Hub."""
    obstacle: str | None = None
    """Why it cannot be served."""
    base_model: str | None = None
    """Of an adapter: what it was made for, as far as it says."""
    file: str = ""
    """Of what was made from a GGUF file on the Hub: that file's name, written out."""

    def called(self, name: str) -> bool:
        """Whether ``name`` means it: ``org/name`` is all revisions, ``org/name@commit`` one."""
        repository, _, revision = name.partition("@")
        if self.revision and repository == self.name.partition("@")[0]:
            return self.name == name or not revision or self.revision.startswith(revision)
        if self.file and means(name, self.file):
            return True
        if self.kind == "quantized" and (found := recipe(name)):
            return found.folder(self.folder.parents[1]) == self.folder
        return name == self.name or (self.kind == "gguf" and str(place_of(name)) == self.name)


def inventory(cache: Path) -> list[Stored]:
    """All models in both caches, those that were read last first."""
    return sorted(map(_looked_at, (*_from_hub(), *_own(cache / "models"))), key=_age)


def _looked_at(one: Stored) -> Stored:
    if one.kind == "adapter":
        return replace(one, obstacle=one.obstacle or _adapter_obstacle(one.folder), base_model=_base_model(one.folder))
    return replace(one, obstacle=one.obstacle or _gguf_obstacle(one) or _obstacle(one.folder))


def remove(models: Iterable[Stored]) -> int:
    """Delete them; bytes that this has freed.

    Raises:
        OSError: they cannot be deleted.
    """
    chosen = list(models)
    freed = 0
    if revisions := [one.revision for one in chosen if one.revision]:
        strategy = scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*revisions)
        freed += strategy.expected_freed_size
        strategy.execute()
    for one in chosen:
        if not one.revision:
            shutil.rmtree(one.folder)
            one.folder.with_name(f"{one.folder.name}.lock").unlink(missing_ok=True)
            freed += one.nbytes
    return freed


def size_of(folder: Path) -> int:
    """Bytes of all files in it, also of those that are links to somewhere else."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def unfinished_bytes(repository: str) -> int:
    """What is here already of files of a Hub's repository that are not whole."""
    return next((_unfinished(one) for one in _repositories() if one.repo_id == repository), 0)


# Hugging Face's cache


def _repositories() -> Iterator[CachedRepoInfo]:
    try:
        yield from (one for one in scan_cache_dir(constants.HF_HUB_CACHE).repos if one.repo_type == "model")
    except CacheNotFound:
        return


def _from_hub() -> Iterator[Stored]:
    for repository in _repositories():
        unfinished = _unfinished(repository)
        for revision in repository.revisions:
            folder = revision.snapshot_path
            yield Stored(
                _hub_name(repository, revision),
                "adapter" if is_adapter(folder) else "hub",
                folder,
                revision.size_on_disk + unfinished,
                repository.last_accessed,
                revision.commit_hash,
                "It is not wholly downloaded." if unfinished else None,
            )


def _hub_name(repository: CachedRepoInfo, revision: CachedRevisionInfo) -> str:
    if "main" in revision.refs:
        return repository.repo_id
    return f"{repository.repo_id}@{min(revision.refs, default=revision.commit_hash)}"


def _unfinished(repository: CachedRepoInfo) -> int:
    return sum(file.stat().st_size for file in repository.repo_path.glob("blobs/*.incomplete"))


# Jackfield's own


def _own(folder: Path) -> Iterator[Stored]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = FOLDER.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        kind: Kind = match["kind"]  # type: ignore[assignment]
        used = max((file.stat().st_atime for file in path.iterdir()), default=0.0)
        name, file = _own_name(path, kind)
        yield Stored(name, kind, path, size_of(path), used, obstacle=_outdated(path, kind), file=file)


def _own_name(path: Path, kind: Kind) -> tuple[str, str]:
    """Its name, and the file it was made from if the name does not say it."""
    if kind == "starter" and not _outdated(path, kind):
        return starter.NAME, ""
    try:
        return read_origin(path) or (path.name, "")
    except ModelLoadError:
        return path.name, ""


def _outdated(path: Path, kind: Kind) -> str | None:
    if kind == "starter" and not path.name.endswith(f"-{convert.VERSION}"):
        return "Another version of Jackfield has made it."
    return None


def _obstacle(folder: Path) -> str | None:
    """What is wrong with the files, without reading weights."""
    try:
        check_folder(folder)
    except ModelLoadError as error:
        return error.message.replace(f"The model in {folder}", "It").replace(str(folder), "It")
    return None


def _gguf_obstacle(one: Stored) -> str | None:
    """What to do with a download of GGUF files."""
    file = min((str(path.relative_to(one.folder)) for path in one.folder.rglob("*.gguf")), default=None)
    if file is None or any(one.folder.glob("model*.safetensors")):
        return None
    return f"It holds GGUF files, which are served by names of their own, such as {one.name}:{file}."


def _adapter_obstacle(folder: Path) -> str | None:
    return None if is_whole(folder) else f"It has no {MLX} and no {PEFT}."


def _base_model(folder: Path) -> str | None:
    try:
        return base_model(folder)
    except ModelLoadError:
        return None


def _age(model: Stored) -> tuple[bool, float]:
    return model.obstacle is not None, -model.used


def is_own(name: str) -> bool:
    """Whether ``name`` is a folder or file of the user's, which nothing here deletes."""
    return Path(name).expanduser().exists()
