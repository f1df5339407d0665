"""The plugin in a server of the test's own: its hooks called as Jackfield calls them."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jackfield.errors import JackfieldError
from jackfield.hooks import ChatMessage, Event, ModelInfo
from jackfield_notify import Plugin
from notify_receivers import PATIENCE


@dataclass
class FakeServer:
    """What plugins know of a server."""

    data_dir: Path
    url: str = ""
    emitted: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)

    def models(self) -> list[ModelInfo]:
        return []

    def plugins(self) -> list[dict[str, Any]]:
        return []

    def emit(self, event: Event) -> None:
        self.emitted.put(event)

    async def complete(
        self, messages: Sequence[ChatMessage], *, model: str | None = None, max_tokens: int = 256
    ) -> str:
        raise NotImplementedError


@dataclass
class Plugged:
    """The plugin, plugged into a server that runs."""

    plugin: Plugin
    server: FakeServer
    registry: CollectorRegistry
    url: str

    def tell(self, kind: str = "failed", level: str = "error", title: str = "It failed.", **more: Any) -> None:
        """Something happens; the plugin hears of it on this thread."""
        self.plugin.on_event(Event(kind, level, title, **more))  # type: ignore[arg-type]

    def metrics(self) -> str:
        return generate_latest(self.registry).decode()


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, JackfieldError)
    return JSONResponse(error.envelope(), error.status, headers=error.headers)


@contextmanager
def plugged(data_dir: Path, settings: dict[str, Any] | None = None) -> Iterator[Plugged]:
    """Run a server with the plugin in it."""
    plugin, server, registry = Plugin(), FakeServer(data_dir), CollectorRegistry()
    config = plugin.configure().model_validate(settings or {})
    plugin.register_metrics(registry)
    app = Starlette(routes=list(plugin.register_routes(server, config)), exception_handlers={JackfieldError: _expected})
    with _serving(app, lambda: plugin.startup(server, config), plugin.shutdown) as url:
        yield Plugged(plugin, server, registry, url)


@contextmanager
def _serving(app: Starlette, startup: Callable[[], Any], shutdown: Callable[[], Any]) -> Iterator[str]:
    started: Future[tuple[str, Callable[[], object]]] = Future()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))

    async def run() -> None:
        await startup()
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        started.set_result((f"http://127.0.0.1:{port}", lambda: loop.call_soon_threadsafe(stopping.set)))
        await stopping.wait()
        await shutdown()
        server.should_exit = True
        await serving

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    worker = threading.Thread(target=thread)
    worker.start()
    url, stop = started.result(PATIENCE)
    try:
        yield url
    finally:
        stop()
        worker.join(PATIENCE)
