"""GGUF files on the Hugging Face Hub, by names like ``org/name:Q4_K_M`` and ``org/name@revision:folder/file.gguf``.

They are downloaded into the cache that all its tools share, and converted into Jackfield's own at first use. Once that
is done the download is not needed any more.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models import hub_client
from jackfield.models.folder import PATH_STARTS
from jackfield.models.gguf_names import parts_of, pick, quantizations
from jackfield.models.gguf_source import Conversion
from jackfield.models.hub_client import cached_snapshot, explained, fetch_files, listed
from jackfield.models.progress import Progress
from jackfield.models.quantized import read_origin, recipe

NAME = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>\w[\w./-]*))?:(?P<file>[^\s:/][^:\x00-\x1f]*)", re.ASCII
)
CARDS = ("README.md", ".gitattributes")
"""What each repository has, besides its files."""
HEADER_BYTES = 16 * 2**20
"""What is read of each file to know what it holds; vocabularies take half of it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a name says."""

    repository: str
    revision: str
    file: str
    """A file's name or a quantization."""

    def named(self, file: str) -> str:
        """The name of one file, written out."""
        return f"{self.repository}{f'@{self.revision}' if self.revision else ''}:{file}"


def parse(name: str) -> Asked | None:
    """None if the name is of another form, or a file's on this machine."""
    match = NAME.fullmatch(name)
    if match is None or ".." in name or name.startswith(PATH_STARTS) or recipe(name) or Path(name).exists():
        return None
    return Asked(match["repository"], match["revision"] or "", match["file"])


def means(name: str, file: str) -> bool:
    """Whether ``name`` means the file that is written out as ``file``."""
    asked, found = parse(name), parse(file)
    if asked is None or found is None or asked.named("") != found.named(""):
        return False
    return pick(parts_of(found.file), asked.file) is not None


class HubGGUF:
    """The source of such names."""

    def matches(self, name: str) -> bool:
        """By the form of the name."""
        return parse(name) is not None

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The converted folder."""
        asked = parse(name)
        assert asked is not None  # noqa: S101 - see matches
        with explained(asked.repository, asked.revision):
            names = hub_client.names(asked.repository, asked.revision)
            if names is None:
                return _without_the_hub(name, asked, cache, progress)
            files = _files(asked, names)
            made = _conversion(asked, files[0], hub_client.etags(asked.repository, asked.revision, files))
            if made.folder(cache).is_dir():
                return made.folder(cache)
            # Something small first: a download that breaks off is not listed without any file that is whole.
            hub_client.snapshot(asked.repository, asked.revision, CARDS)
            wanted = [escape(file) for file in files]
            folder = fetch_files(asked.repository, asked.revision, wanted, progress, title=f"Downloading {name}")
        return made.made(folder / files[0], cache, progress, name=name, file=asked.named(files[0]))


def _files(asked: Asked, names: list[str]) -> list[str]:
    """The file that is meant, and its other parts.

    Raises:
        ModelLoadError: there is none.
    """
    first = pick(names, asked.file)
    if first is None:
        there = ", ".join(quantizations(names))
        raise ModelLoadError(
            f"{asked.repository} on the Hugging Face Hub has no GGUF file {asked.file!r}.",
            suggestions=(f"Take one of these: {there}." if there else "See on its page which files it has.",),
        )
    files = parts_of(first)
    if missing := [file for file in files if file not in names]:
        raise ModelLoadError(
            f"{asked.repository} on the Hugging Face Hub has not all parts of {first}: {missing[0]} is missing.",
            suggestions=("Take another one of its files.",),
        )
    return files


def _conversion(asked: Asked, file: str, etags: list[str]) -> Conversion:
    return Conversion(Path(file).stem, asked.named(file), " ".join(etags))


def _without_the_hub(name: str, asked: Asked, cache: Path, progress: Progress) -> Path:
    """What is here already.

    Raises:
        ModelLoadError: nothing is.
    """
    if (folder := converted(name, cache)) is not None:
        return folder
    found = _in_cache(asked)
    if found is None:
        raise hub_client.unreachable(name)
    snapshot, files = found
    # Links to files that are named after their contents.
    etags = [(snapshot / file).resolve().name for file in files]
    made = _conversion(asked, files[0], etags)
    return made.made(snapshot / files[0], cache, progress, name=name, file=asked.named(files[0]))


def _in_cache(asked: Asked) -> tuple[Path, list[str]] | None:
    """The snapshot's folder, and the names of the files in it, if all of them are there."""
    snapshot = cached_snapshot(asked.repository, asked.revision)
    names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")] if snapshot else []
    first = pick(names, asked.file)
    if snapshot is None or first is None or not set(parts_of(first)) <= set(names):
        return None
    return snapshot, parts_of(first)


def converted(name: str, cache: Path) -> Path | None:
    """The folder that was made from the file that ``name`` means; nobody is asked."""
    folders = (one for one in (cache / "models").glob("gguf-*") if one.is_dir())
    return next((one for one in folders if (origin := read_origin(one)) and means(name, origin[1])), None)


def downloaded(name: str) -> Path | None:
    """The first of its files, if all of them are in Hugging Face's cache; nobody is asked."""
    asked = parse(name)
    found = _in_cache(asked) if asked else None
    return found[0] / found[1][0] if found else None


@dataclass(frozen=True, slots=True)
class Preview:
    """A file that is still on the Hub."""

    path: Path
    """Its header, and holes where the rest will be."""
    missing_bytes: int
    """What would be downloaded."""
    nbytes: int
    """Of all parts."""


@contextmanager
def preview(name: str) -> Iterator[Preview | None]:
    """What the file's header says, as long as the context lasts; None if the Hub cannot be asked.

    Raises:
        ModelLoadError: there is no such file.
    """
    asked = parse(name)
    assert asked is not None  # noqa: S101 - of such a name
    with tempfile.TemporaryDirectory(prefix="jackfield-") as place:
        with explained(asked.repository, asked.revision):
            found = _headers(asked, Path(place))
        yield found


def _headers(asked: Asked, place: Path) -> Preview | None:
    names = hub_client.names(asked.repository, asked.revision)
    files = _files(asked, names) if names is not None else []
    known = listed(asked.repository, asked.revision, [escape(file) for file in files]) if files else None
    if not known:
        return None
    for file in known:
        path = place / Path(file.filename).name
        path.write_bytes(hub_client.beginning(asked.repository, asked.revision, file.filename, HEADER_BYTES))
        with path.open("r+b") as part:
            part.truncate(file.file_size)
    missing = sum(file.file_size or 0 for file in known if file.will_download)
    return Preview(place / Path(files[0]).name, missing, sum(file.file_size or 0 for file in known))
