"""Models from the Hugging Face Hub, here one in memory."""

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from hub_server import COMMIT, FakeHub, serve, use
from jackfield.errors import ModelLoadError
from jackfield.models import downloads
from jackfield.models.downloads import download
from jackfield.models.hub import Hub, cached
from jackfield.models.progress import SILENT
from jackfield.models.sources import resolve

NAME = "acme/tiny"
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: several chunks
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "chat_template.jinja": b"{{ messages }}",
    "modeling_tiny.py": b"raise SystemExit('code from the hub ran')",
    "pytorch_model.bin": b"pickle",
    "onnx/config.json": b"{}",
    "original/model.safetensors": b"other weights",
}
SERVED = {"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own retries
    with serve(FakeHub({NAME: dict(FILES)})) as server:
        use(monkeypatch, server.url)
        yield server


def fetch(name: str = NAME, cache: Path = Path("unused")) -> Path:
    return resolve(name, cache=cache)


def test_only_data_files_of_the_top_folder_are_downloaded(hub: FakeHub) -> None:
    folder = fetch()
    assert {path.name for path in folder.iterdir()} == SERVED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_embedding_models_pooling_is_downloaded_too(hub: FakeHub) -> None:
    own = {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "2_Dense/model.safetensors": b"more weights"}
    hub.repositories[NAME].update(own)
    folder = fetch()
    assert {path.name for path in folder.iterdir()} == SERVED | {"modules.json", "1_Pooling"}
    assert (folder / "1_Pooling" / "config.json").read_bytes() == b"{}"
    hub.downloads.clear()
    assert fetch() == folder
    assert hub.downloads == []


def test_a_second_run_downloads_nothing(hub: FakeHub) -> None:
    first = fetch()
    del hub.downloads[:]
    assert fetch() == first
    assert hub.downloads == []
    assert cached(NAME) == first, "whatever else the repository holds"
    (first / "model.safetensors").unlink()
    assert cached(NAME) is None


def test_a_branch_or_commit_can_be_named(hub: FakeHub) -> None:
    assert fetch(f"{NAME}@{COMMIT}").name == COMMIT
    with pytest.raises(ModelLoadError, match="no revision 'v9'"):
        fetch(f"{NAME}@v9")


def test_what_is_cached_serves_without_network(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    first = fetch()
    use(monkeypatch, "http://127.0.0.1:9")
    assert fetch() == first


def test_without_network_and_cache_the_error_says_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ModelLoadError, match="cannot be reached") as caught:
        fetch()
    assert any("starter" in suggestion for suggestion in caught.value.suggestions)


def test_an_unknown_repository(hub: FakeHub) -> None:
    with pytest.raises(ModelLoadError, match="There is no acme/other") as caught:
        fetch("acme/other")
    assert any("hf auth login" in suggestion for suggestion in caught.value.suggestions)


def test_a_gated_repository(hub: FakeHub) -> None:
    hub.gated = (NAME,)
    with pytest.raises(ModelLoadError, match="gated") as caught:
        fetch()
    assert f"https://huggingface.co/{NAME}" in caught.value.suggestions[0]


def test_a_repository_without_a_model(hub: FakeHub) -> None:
    hub.repositories["acme/tiny-GGUF"] = {"tiny.gguf": b"GGUF"}
    with pytest.raises(ModelLoadError, match=r"no config\.json") as caught:
        fetch("acme/tiny-GGUF")
    assert any(".gguf" in suggestion for suggestion in caught.value.suggestions)
    hub.repositories["acme/other-GGUF"] = {
        "config.json": FILES["config.json"],
        "tiny-Q8_0.gguf": b"",
        "tiny-q4_k_m.gguf": b"",
    }
    with pytest.raises(ModelLoadError, match="of which one has to be named") as caught:
        fetch("acme/other-GGUF")
    assert "acme/other-GGUF:Q4_K_M" in caught.value.suggestions[0]
    assert "Q4_K_M, Q8_0" in caught.value.suggestions[1]
    hub.downloads.remove("config.json@0")
    assert hub.downloads == []


def test_a_model_that_brings_code_is_refused_before_its_weights_are_downloaded(hub: FakeHub) -> None:
    hub.repositories[NAME]["config.json"] = b'{"model_type": "llama", "model_file": "modeling_tiny.py"}'
    with pytest.raises(ModelLoadError, match="own code"):
        fetch()
    assert hub.downloads == ["config.json@0"]


def test_a_broken_connection_is_resumed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
    hub.cut_after["model.safetensors"] = 3_000_000
    folder = fetch()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "model.safetensors@3000000" in hub.downloads


def test_a_download_that_never_ends_well_leaves_no_model(hub: FakeHub) -> None:
    hub.cut_after["model.safetensors"] = 0
    with pytest.raises(ModelLoadError, match="failed") as caught:
        fetch()
    assert any("Try again" in suggestion for suggestion in caught.value.suggestions)
    hub.cut_after.clear()
    assert (fetch() / "model.safetensors").read_bytes() == WEIGHTS


def test_an_interrupted_download_does_not_pass_for_a_model_offline(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut_after["model.safetensors"] = 0
    with pytest.raises(ModelLoadError):
        fetch()
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ModelLoadError):
        fetch()


def partial(tmp_path: Path) -> Path:
    """Where a part of the weights would be."""
    blobs = tmp_path / "hf" / "models--acme--tiny" / "blobs"
    blobs.mkdir(parents=True)
    return blobs / f"{hashlib.sha256(WEIGHTS).hexdigest()}.incomplete"


def test_only_the_rest_of_what_an_earlier_attempt_left_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    partial(tmp_path).write_bytes(WEIGHTS[:4_000_000])
    assert (fetch() / "model.safetensors").read_bytes() == WEIGHTS
    assert [name for name in hub.downloads if name.startswith("model")] == ["model.safetensors@4000000"]
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


def test_what_is_longer_than_the_file_is_thrown_away(hub: FakeHub, tmp_path: Path) -> None:
    partial(tmp_path).write_bytes(WEIGHTS + b"more")
    assert (fetch() / "model.safetensors").read_bytes() == WEIGHTS


def test_what_is_no_part_of_the_file_is_thrown_away(hub: FakeHub, tmp_path: Path) -> None:
    partial(tmp_path).write_bytes(bytes(1000))
    with pytest.raises(ModelLoadError, match="damaged"):
        fetch()
    assert (fetch() / "model.safetensors").read_bytes() == WEIGHTS


def test_of_small_files_nothing_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    """As their ETag would not tell whether both parts belong together."""
    template = FILES["chat_template.jinja"]
    small = hashlib.sha1(template, usedforsecurity=False).hexdigest()
    partial(tmp_path).with_name(f"{small}.incomplete").write_bytes(template[:3])
    assert (fetch() / "chat_template.jinja").read_bytes() == template
    assert "chat_template.jinja@0" in hub.downloads


def test_what_another_process_downloads_is_not_written_by_two(hub: FakeHub, tmp_path: Path) -> None:
    part = partial(tmp_path)
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert (fetch() / "model.safetensors").read_bytes() == WEIGHTS
    assert part.read_bytes() == b""
    assert "model.safetensors@0" in hub.downloads


def test_the_key_is_for_the_hub_alone(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for where its files are."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(FakeHub({NAME: dict(FILES)})) as other:
        hub.elsewhere = other.url
        assert (fetch() / "model.safetensors").read_bytes() == WEIGHTS
        assert other.authorizations == {None}
        assert len(other.downloads) == len(SERVED)
    hub.elsewhere = ""
    hub.repositories["acme/other"] = dict(FILES)
    fetch("acme/other")
    assert hub.authorizations == {"Bearer hf_secret"}


class Quiet:
    """A task that lets each piece of a file take its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.done, self.total = 0, 0
        self._seconds = seconds

    def advance(self, amount: int) -> None:
        self.done += amount
        threading.Event().wait(self._seconds)

    def expect(self, total: int) -> None:
        self.total = total


@pytest.mark.parametrize("last", ["config.json", "model.safetensors"])
def test_files_end_when_one_of_them_fails(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """Whichever of them was begun first."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    files = snapshot_download(NAME, dry_run=True, allow_patterns=["config.json", "model.safetensors"])
    files.sort(key=lambda file: file.filename == last)
    del hub.repositories[NAME]["config.json"]
    task = Quiet(0.2)
    with pytest.raises(EntryNotFoundError):
        download(NAME, files, task)
    assert task.total == len(FILES["config.json"]) + len(WEIGHTS)
    assert task.done < len(WEIGHTS)


def test_files_are_not_begun_after_one_has_failed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "AT_ONCE", 1)
    files = snapshot_download(NAME, dry_run=True, allow_patterns=["config.json", "model.safetensors"])
    files.sort(key=lambda file: file.filename)
    del hub.repositories[NAME]["config.json"]
    with pytest.raises(EntryNotFoundError):
        download(NAME, files, Quiet())
    assert hub.downloads == []


def test_what_was_there_already_counts_as_done(hub: FakeHub, tmp_path: Path) -> None:
    partial(tmp_path).write_bytes(WEIGHTS[:4_000_000])
    task = Quiet()
    download(NAME, snapshot_download(NAME, dry_run=True, allow_patterns=["model.safetensors"]), task)
    assert (task.done, task.total) == (len(WEIGHTS), len(WEIGHTS))


def test_what_another_process_has_downloaded_meanwhile(hub: FakeHub, tmp_path: Path) -> None:
    files = snapshot_download(NAME, dry_run=True, allow_patterns=["model.safetensors"])
    partial(tmp_path).with_suffix("").write_bytes(WEIGHTS)
    download(NAME, files, Quiet())
    assert hub.downloads == []


def test_what_is_too_large_for_this_is_left_to_the_client(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = snapshot_download(NAME, dry_run=True, allow_patterns=["model.safetensors"])
    monkeypatch.setattr(huggingface_hub.constants, "MAX_HTTP_DOWNLOAD_SIZE", len(WEIGHTS) - 1)
    download(NAME, files, Quiet())
    assert hub.downloads == []


@pytest.mark.parametrize("own", [True, False], ids=["by us", "by the Hub's client"])
def test_progress_counts_every_byte_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    monkeypatch.setattr(downloads, "_goes_over_http", lambda file: own)
    counts = {"done": 0, "total": 0}

    class Counter:
        def advance(self, amount: int) -> None:
            assert amount > 0
            counts["done"] += amount

        def expect(self, total: int) -> None:
            counts["total"] = total

    class Progress:
        @contextmanager
        def task(self, description: str, total: int | None = None) -> Iterator[Counter]:
            yield Counter()

    resolve(NAME, cache=Path("unused"), progress=Progress())
    expected = sum(len(FILES[name]) for name in SERVED - {"config.json"})
    assert counts == {"done": expected, "total": expected}


def test_the_environment_chooses_hub_and_cache(hub: FakeHub, tmp_path: Path) -> None:
    """As a user does it: in a process of its own, with HF_ENDPOINT and HF_HOME."""
    code = (
        f"import pathlib; from jackfield.models.sources import resolve; print(resolve({NAME!r}, cache=pathlib.Path()))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")


@pytest.mark.parametrize(
    "name", ["org/na/me", "../models", "org/../x", "org/name@../../x", "org/name@", "org", "/org", "org/name@a..b", ""]
)
def test_names_that_are_none(name: str) -> None:
    assert not Hub().matches(name)


@pytest.mark.parametrize("name", ["org/name", "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit", "a/b@refs/pr/1"])
def test_names_of_repositories(name: str) -> None:
    assert Hub().matches(name)


def test_an_unwritable_cache_is_told(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match="cannot be written") as caught:
        Hub().fetch(NAME, tmp_path, SILENT)
    assert any("HF_HOME" in suggestion for suggestion in caught.value.suggestions)
