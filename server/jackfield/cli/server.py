"""From settings to a server that answers: fetch the model, load it, open the port."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator

import click
import uvicorn
from starlette.applications import Starlette

from jackfield.app import create_app
from jackfield.cli.progress import RichProgress
from jackfield.events import EventBus
from jackfield.hooks.calls import Hooks
from jackfield.models.lineup import Fetch, Lineup
from jackfield.settings import Settings

logger = logging.getLogger(__name__)

END_SECONDS = 5.0
"""How long what is still at work may take to end."""

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""


class _Server(uvicorn.Server):
    """Ends with status 0 after SIGTERM or SIGINT, where uvicorn's own sends the signal to itself once more."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let the signals end the server; a second one ends it at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


async def run(settings: Settings, fetch: Fetch, listener: socket.socket, hooks: Hooks) -> None:
    """Serve models, which ``fetch`` finds, until a signal comes.

    Raises:
        ModelLoadError: a model cannot be served; the port has not been opened then.
        ConfigurationError: plugins cannot be served as they are.
    """
    events = EventBus()
    lineup = Lineup(settings, fetch, events, tell=tell, hooks=hooks.engine, progress=RichProgress())
    try:
        await lineup.start()
        app = create_app(settings, lineup.registry, hooks, events)
        host, port = listener.getsockname()[:2]
        app.state.host.url = f"http://{host}:{port}"
        async with app.router.lifespan_context(app):
            listener.listen(BACKLOG)
            first, *others = [entry.id for entry in lineup.registry.entries]
            tell(f"Serving {first} on http://{host}:{port}/v1")
            if others:
                tell(f"And when they are asked for: {', '.join(others)}")
            await _Server(_config(app, settings)).serve(sockets=[listener])
    finally:
        await lineup.stop()
        await _leave_behind()


async def _leave_behind() -> None:
    """End although a plugin's coroutine does not let itself be cancelled."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (await asyncio.wait(left, timeout=END_SECONDS))[1]:
        logger.error("Plugins do not end; the server does.")
        logging.shutdown()
        os._exit(0)


def _config(app: Starlette, settings: Settings) -> uvicorn.Config:
    access_log = settings.log_level == "debug"
    return uvicorn.Config(app, log_config=None, access_log=access_log, lifespan="off", backlog=BACKLOG)


def tell(line: str) -> None:
    """Show a line to whoever started the server."""
    click.echo(line, err=True)
