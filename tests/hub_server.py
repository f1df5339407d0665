"""A Hugging Face Hub small enough for tests: repositories in memory, over HTTP."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+?)(/revision/(?P<revision>[^/]+))?(?P<tree>/tree/[^/]+)?")
FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")


@dataclass
class FakeHub:
    """What the server holds, how it misbehaves, and what it was asked."""

    repositories: dict[str, dict[str, bytes]]
    revisions: tuple[str, ...] = ("main", COMMIT)
    gated: tuple[str, ...] = ()
    cut_after: dict[str, int] = field(default_factory=dict)
    """File -> bytes after which the connection breaks, every time."""
    ends_at: dict[str, int] = field(default_factory=dict)
    """File -> the byte that nobody gets beyond, however often they ask."""
    pauses: dict[str, threading.Event] = field(default_factory=dict)
    """File -> what is waited for in its middle."""
    tags: tuple[str, ...] = ()
    """Of all repositories."""
    elsewhere: str = ""
    """The address of another server, which has the files; this one only knows of them."""
    authorizations: set[str | None] = field(default_factory=set)
    """What those who downloaded files said who they are."""
    downloads: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the server while the context lasts."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does, which is read at import."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if match := API.fullmatch(path):
            self._api(match["repository"], match["revision"] or "main", tree=bool(match["tree"]))
        elif match := FILE.fullmatch(path):
            self._file(match["repository"], match["file"])
        else:
            self._error(404, "EntryNotFound")

    def _api(self, repository: str, revision: str, *, tree: bool) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            self._error(401, "RepoNotFound")
        elif revision not in self.hub.revisions:
            self._error(404, "RevisionNotFound")
        else:
            self._json(_tree(files) if tree else _info(repository, files, self.hub.tags))

    def _file(self, repository: str, name: str) -> None:
        if repository in self.hub.gated:
            return self._error(403, "GatedRepo")
        data = self.hub.repositories.get(repository, {}).get(name)
        if data is None:
            return self._error(404, "EntryNotFound")
        if self.hub.elsewhere:
            return self._send_elsewhere(data)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        return self._send(name, data, start)

    def _send_elsewhere(self, data: bytes) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.hub.elsewhere}{self.path}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-ETag", f'"{_digest(data)}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, data: bytes, start: int) -> None:
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_digest(data)}"')
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.downloads.append(f"{name}@{start}")
        self.hub.authorizations.add(self.headers.get("Authorization"))
        limit = min(self.hub.cut_after.get(name, len(data)), max(0, self.hub.ends_at.get(name, len(data)) - start))
        middle = start + limit // 2
        self.wfile.write(data[start:middle])
        if pause := self.hub.pauses.get(name):
            pause.wait()
        self.wfile.write(data[middle : start + limit])
        if start + limit < len(data):
            self.close_connection = True

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(repository: str, files: dict[str, bytes], tags: tuple[str, ...]) -> dict[str, object]:
    siblings = [{"rfilename": name} for name in files]
    return {"id": repository, "sha": COMMIT, "private": False, "siblings": siblings, "tags": list(tags)}


def _tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    return [{"type": "file", "path": name, "size": len(data), "oid": _digest(data)} for name, data in files.items()]


def _digest(data: bytes) -> str:
    """Of large files SHA-256, as the Hub has it, and of small ones another."""
    if len(data) > 1_000_000:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
