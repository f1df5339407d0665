"""What Jackfield takes for granted about huggingface_hub. An upgrade that breaks something breaks it here, saying why.

``http_get`` and the cache's layout are its own business: nothing public downloads the rest of a file.
"""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CachedRepoInfo,
    CachedRevisionInfo,
    DryRunFileInfo,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    scan_cache_dir,
    snapshot_download,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils.tqdm import tqdm

from hub_server import COMMIT, FakeHub, serve, use

NAME = "acme/tiny"
DATA = bytes(range(256)) * 8_000
FILES = {"config.json": b"{}", "model.safetensors": DATA, "half/model.gguf": DATA[::-1]}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with serve(FakeHub({NAME: dict(FILES)})) as server:
        use(monkeypatch, server.url)
        yield server


@pytest.mark.parametrize(
    ("function", "asked"),
    [
        (http_get, {"url", "temp_file", "resume_size", "headers", "expected_size", "tqdm_class"}),
        (build_hf_headers, set()),
        (get_hf_file_metadata, {"url", "headers"}),
        (hf_hub_url, {"repo_id", "filename", "revision"}),
        (
            snapshot_download,
            {
                "repo_id",
                "revision",
                "allow_patterns",
                "ignore_patterns",
                "tqdm_class",
                "dry_run",
                "local_files_only",
            },
        ),
        (scan_cache_dir, {"cache_dir"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_functions_have_these_parameters(function: Callable[..., Any], asked: set[str]) -> None:
    parameters = inspect.signature(function).parameters
    assert asked <= parameters.keys(), f"{function.__name__} has lost what models/downloads.py or hub.py calls it with"
    needed = {name for name, one in parameters.items() if one.default is one.empty and one.kind < one.VAR_POSITIONAL}
    assert needed <= asked, f"{function.__name__} wants more than it is called with"


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (HfFileMetadata, {"etag", "size", "location"}),
        (DryRunFileInfo, {"filename", "local_path", "file_size", "commit_hash", "will_download"}),
        (CachedRepoInfo, {"repo_id", "repo_type", "repo_path", "revisions", "last_accessed"}),
        (CachedRevisionInfo, {"commit_hash", "refs", "snapshot_path", "size_on_disk", "files"}),
    ],
)
def test_what_it_tells_has_these_fields(kind: type[Any], asked: set[str]) -> None:
    fields = {field.name for field in dataclasses.fields(kind)}
    assert asked <= fields, f"{kind.__name__} has lost fields that models/ reads"


def test_the_rest_of_a_file_is_written_behind_its_beginning(hub: FakeHub, tmp_path: Path) -> None:
    told: list[int] = []

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            told.append(int(n or 0))

    url = hf_hub_url(NAME, "model.safetensors", revision=COMMIT)
    found = get_hf_file_metadata(url, headers=build_hf_headers())
    assert (found.etag, found.size) == (hashlib.sha256(DATA).hexdigest(), len(DATA)), "models/downloads.py trusts these"
    path = tmp_path / "part"
    path.write_bytes(DATA[:1000])
    with path.open("r+b") as part:
        part.seek(1000)
        http_get(
            found.location,
            part,
            resume_size=1000,
            headers=build_hf_headers(),
            expected_size=found.size,
            tqdm_class=Bar,
        )
        part.flush()
    assert path.read_bytes() == DATA, "http_get appends where the file stands, and leaves it open"
    assert hub.downloads == ["model.safetensors@1000"], "resume_size becomes a range"
    assert sum(told) == len(DATA) - 1000, "bars are told of the bytes that are new (models/downloads.py)"


def test_blobs_that_are_there_are_not_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    listed = snapshot_download(NAME, dry_run=True)
    assert {file.filename: file.file_size for file in listed} == {name: len(data) for name, data in FILES.items()}
    for file in listed:
        repository = Path(file.local_path).parents[len(Path(file.filename).parts) + 1]
        assert repository == tmp_path / "hf" / "models--acme--tiny", "local_path is in snapshots/COMMIT"
        etag = get_hf_file_metadata(hf_hub_url(NAME, file.filename, revision=file.commit_hash)).etag
        assert etag is not None
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        (repository / "blobs" / etag).write_bytes(FILES[file.filename])
    folder = Path(snapshot_download(NAME))
    assert hub.downloads == [], "blobs/ETAG is where the client looks before it downloads"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES.keys()


def test_a_cached_snapshot_is_whole_where_nothing_more_is_wanted(hub: FakeHub) -> None:
    folder = snapshot_download(NAME, allow_patterns=["config.json"])
    for wanted in ([], ["config.json"]):
        found = snapshot_download(NAME, allow_patterns=wanted, local_files_only=True)
        assert found == folder, "files that no pattern means may be missing (hub_client.cached_snapshot)"
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(NAME, allow_patterns=["*.gguf"], local_files_only=True)


def test_the_token_is_sent_as_a_bearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert build_hf_headers()["authorization"] == "Bearer hf_secret", "models/downloads.py takes it away by this name"


def test_files_of_this_size_need_another_way() -> None:
    assert isinstance(constants.MAX_HTTP_DOWNLOAD_SIZE, int), "http_get refuses larger ones"
