"""Forwards what happens in a Jackfield server to people and programs."""

import time
from collections.abc import Iterable

import click
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute

from jackfield.hooks import Event, Server, hookimpl
from jackfield_notify.commands import notify
from jackfield_notify.database import StorageError
from jackfield_notify.metrics import Metrics
from jackfield_notify.notifier import Notifier
from jackfield_notify.routes import routes
from jackfield_notify.settings import Settings

__all__ = ["Plugin"]


class Plugin:
    """What Jackfield plugs in."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._notifier: Notifier | None = None

    @hookimpl
    def configure(self) -> type[Settings]:
        """The settings' class."""
        return Settings

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        """Add ``jackfield notify``."""
        cli.add_command(notify)

    @hookimpl
    def register_metrics(self, registry: CollectorRegistry) -> None:
        """Show how deliveries go."""
        self._metrics.register(registry, self._counts)

    @hookimpl
    def register_routes(self, server: Server, config: Settings) -> Iterable[BaseRoute]:
        """The live stream and ``/v1/notifications``."""
        return routes(self._open(server, config), time.time)

    @hookimpl
    async def startup(self, server: Server, config: Settings) -> None:
        """Begin to deliver."""
        await self._open(server, config).start()

    @hookimpl
    async def shutdown(self) -> None:
        """Deliver what is due, and close."""
        if self._notifier:
            await self._notifier.stop()
            self._notifier.close()

    @hookimpl
    def on_event(self, event: Event) -> None:
        """Forward it. Before there is anybody to forward it to, events are nobody's."""
        if self._notifier:
            self._notifier.tell(event)

    def _counts(self) -> dict[str, int]:
        try:
            return self._notifier.counts() if self._notifier else {}
        except StorageError:
            return {}  # it is told elsewhere, and the other metrics are wanted all the same

    def _open(self, server: Server, config: Settings) -> Notifier:
        if self._notifier is None:
            self._notifier = Notifier(server.data_dir, config, metrics=self._metrics, emit=server.emit)
        return self._notifier
