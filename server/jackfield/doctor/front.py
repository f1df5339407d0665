"""A server of the doctor's own, in front of the visited one: its routes lead to upstreams that fail, and then there.

Nothing is loaded for it, and nobody else reaches it.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette

from jackfield.app import create_app
from jackfield.doctor.visit import Visit
from jackfield.errors import UnavailableError
from jackfield.models.lineup import remote_entries
from jackfield.models.registry import Registry
from jackfield.settings import ModelSettings, Settings
from jackfield.settings.upstreams import RouteStep, UpstreamSettings

FAULTS = ("refuses", "fails", "talks nonsense", "breaks")
"""What upstreams do: nobody listens there, an answer of 500, one that is no JSON, a stream that ends in its middle."""
VISITED = "visited"
FAILURES = 3
"""So many, and a failing upstream is left alone."""
START_SECONDS = 20.0

_EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "Half an"}, "finish_reason": null}]}\n\n'


class _Failing(BaseHTTPRequestHandler):
    """Fails in the way that the first part of the path says."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/fails"):
            self._answer(500, "application/json", b'{"error": {"message": "This one fails on purpose."}}')
        elif self.path.startswith("/talks"):
            self._answer(200, "text/event-stream", b"data: {nonsense\n\n")
        else:
            self._answer(200, "text/event-stream", _EVENT)

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Nobody wants to know."""


@contextmanager
def front(visit: Visit) -> Iterator[Visit]:
    """A visit to such a server, whose models are called like `FAULTS`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Failing) as failing:
        thread = threading.Thread(target=failing.serve_forever, name="jackfield-doctor-upstream")
        thread.start()
        try:
            settings = _settings(visit, f"http://127.0.0.1:{failing.server_address[1]}")
            app = create_app(settings, Registry(remote_entries(settings)))
            with _served(app) as url, closing(Visit(url)) as own:
                yield own
        finally:
            failing.shutdown()
            thread.join()


def _settings(visit: Visit, failing: str) -> Settings:
    places = {name: f"{failing}/{name.split()[0]}/v1" for name in FAULTS} | {"refuses": "http://127.0.0.1:1/v1"}
    upstreams = {name: UpstreamSettings(url=url, max_failures=FAILURES) for name, url in places.items()}
    key = SecretStr(visit.key) if visit.key else None
    upstreams[VISITED] = UpstreamSettings(url=f"{visit.url}/v1", api_key=key)
    last = RouteStep(backend=VISITED, model=visit.model)
    models = {name: ModelSettings(route=(RouteStep(backend=name), last)) for name in FAULTS}
    return Settings(models=models, upstreams=upstreams, stored_responses_bytes=0)


@contextmanager
def _served(app: Starlette) -> Iterator[str]:
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="jackfield-doctor-server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{_port(server)}"
    finally:
        server.should_exit = True
        thread.join()


def _port(server: uvicorn.Server) -> int:
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if time.monotonic() > deadline:
            raise UnavailableError(
                "The doctor's own server does not start.", suggestions=("See what else runs on this machine.",)
            )
        time.sleep(0.02)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


def events(visit: Visit, model: str) -> list[dict[str, Any]]:
    """What a stream of that model's says, event by event."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True}
    lines = visit.post("/v1/chat/completions", body).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
