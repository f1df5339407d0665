"""Real servers that receive notifications, each in a thread of this process."""

import asyncio
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

PATIENCE = 60.0
"""Seconds until a test gives up waiting for something that should happen; it passes long before."""


@contextmanager
def running(app: ASGIApp, **options: Any) -> Iterator[str]:
    """Serve an application on a free port; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **options))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()


@dataclass(frozen=True)
class Received:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Writes down what it is sent, and answers as it is told to."""

    answers: list[Response] = field(default_factory=list)
    """To give first, one by one; 204 afterwards."""
    requests: "queue.SimpleQueue[Received]" = field(default_factory=queue.SimpleQueue)
    count: int = 0
    url: str = ""

    async def _receive(self, request: Request) -> Response:
        self.count += 1
        self.requests.put(Received(request.url.path, dict(request.headers), await request.body()))
        return self.answers.pop(0) if self.answers else Response(status_code=204)

    def next(self) -> Received:
        """What came next; waits for it."""
        return self.requests.get(timeout=PATIENCE)

    @contextmanager
    def listening(self) -> Iterator["Receiver"]:
        """Take requests."""
        app = Starlette(routes=[Route("/{path:path}", self._receive, methods=["GET", "POST", "PUT"])])
        with running(app) as self.url:
            yield self


class ScriptedClock:
    """Seconds since 1970, as the test says."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """What time it is."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
