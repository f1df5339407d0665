"""A page that shows what a Jackfield server is doing, with a small chat to try its models."""

import asyncio
import logging
from collections.abc import Iterable

from starlette.routing import BaseRoute, Route

from jackfield.hooks import Event, LogRecord, Server, hookimpl
from jackfield_dashboard import pages
from jackfield_dashboard.live import Live
from jackfield_dashboard.overview import Overview
from jackfield_dashboard.settings import Settings

__all__ = ["Plugin"]

logger = logging.getLogger(__name__)


class Plugin:
    """What Jackfield plugs in. All of it runs on the event loop, so nothing needs a lock."""

    def __init__(self) -> None:
        self._overview: Overview | None = None
        self._sampling: asyncio.Task[None] | None = None

    @hookimpl
    def configure(self) -> type[Settings]:
        """The settings' class."""
        return Settings

    @hookimpl
    def register_routes(self, server: Server, config: Settings) -> Iterable[BaseRoute]:
        """The page, and what it shows."""
        self._overview = Overview(server, config)
        live = Live(self._overview, config.most_watchers)
        data = [Route("/dashboard/state", live.state), Route("/dashboard/events", live.events)]
        return [*pages.routes(), *data]

    @hookimpl
    def open_paths(self) -> Iterable[str]:
        """The page: it asks for the key that its data needs."""
        return pages.open_paths()

    @hookimpl
    async def startup(self, server: Server) -> None:
        """Begin to take samples, and say where the page is."""
        if self._overview:
            self._sampling = asyncio.create_task(self._overview.history.run())
            logger.info("The dashboard is at %s/dashboard/", server.url)

    @hookimpl
    async def shutdown(self) -> None:
        """No more samples."""
        if self._sampling:
            self._sampling.cancel()

    @hookimpl
    async def log_record(self, record: LogRecord) -> None:
        """A station on a request's way."""
        if self._overview:
            self._overview.journal.record(record)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """The server says which first tokens took long."""
        if self._overview and event.kind == "slow":
            self._overview.journal.slow(event.request_id)
