"""From settings to a server that answers: fetch the model, load it, open the port."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import click
import uvicorn
from starlette.applications import Starlette

from jackfield.address import place
from jackfield.app import create_app
from jackfield.cli import systemd
from jackfield.cli.loss import Loss
from jackfield.cli.progress import RichProgress
from jackfield.cli.reloading import Reloader
from jackfield.cli.signals import Signals
from jackfield.connections import Limits, protocol
from jackfield.errors import JackfieldError
from jackfield.events import EventBus
from jackfield.group.keeper import end_process, watch_parent
from jackfield.group.member import Leader
from jackfield.group.rank import Rank
from jackfield.hooks.calls import Hooks
from jackfield.models.lineup import Fetch, Lineup
from jackfield.models.sources import Source
from jackfield.security.keyring import Keyring
from jackfield.settings import Configuration, Settings

logger = logging.getLogger(__name__)

END_SECONDS = 5
"""How long what is still at work may take to end."""

LAST_SECONDS = 1.0
"""The same for threads, which cannot be told to."""

ENGINES, WORKERS = "jackfield-engine", "jackfield-work"
"""What threads are called that may be at work when the server ends."""

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""


class _Server(uvicorn.Server):
    """Ends when it is told to, and leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Somebody else does."""
        yield


async def run(
    configuration: Configuration,
    read: Callable[[], Configuration],
    fetch: Fetch,
    listener: socket.socket,
    *,
    hooks: Hooks,
    keys: Keyring,
    rank: Rank | None = None,
    plugged: Sequence[Source] = (),
) -> None:
    """Serve models until a signal comes.

    Args:
        configuration: what is set.
        read: reads it again.
        fetch: finds models.
        listener: where to serve; it has not been opened yet.
        hooks: the plugins.
        keys: who may ask.
        rank: this process's, if it leads a group that serves one model together.
        plugged: where plugins get models from.

    Raises:
        ModelLoadError: a model cannot be served; the port has not been opened then.
        ConfigurationError: plugins cannot be served as they are.
    """
    workers = ThreadPoolExecutor(thread_name_prefix=WORKERS)
    asyncio.get_running_loop().set_default_executor(workers)
    reloader, events = Reloader(configuration, read), EventBus()
    reloader.others.append(keys.reload)
    signals = Signals(reloader.reload)
    settings = configuration.settings
    loss = Loss()
    leader = Leader(rank, loss) if rank else None
    if leader is not None:
        watch_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    lineup = Lineup(
        settings,
        fetch,
        events,
        tell=tell,
        hooks=hooks.engine,
        progress=RichProgress(),
        member=leader,
        plugged=plugged,
    )
    status = 1
    try:
        if await signals.unless_ending(lineup.start()):
            app = create_app(settings, lineup.registry, hooks, events, keys)
            loss.serving(lineup.registry)
            async with _open(app, lineup, listener):
                reloader.reroute = app.state.host.reroute
                signals.reload = partial(systemd.reloading, reloader.reload)
                await _serve(app, settings, listener, signals, loss)
        status = loss.status
    except JackfieldError as error:
        status = error.exit_status
        raise
    finally:
        await lineup.stop()
        if leader is not None:
            leader.end()
        await _leave_behind(workers, status)
    if status:
        sys.exit(status)


@contextlib.asynccontextmanager
async def _open(app: Starlette, lineup: Lineup, listener: socket.socket) -> AsyncIterator[None]:
    """Plugins have started, and clients may come."""
    host, port = listener.getsockname()[:2]
    app.state.host.url = f"http://{place(host, port)}"
    async with app.router.lifespan_context(app):
        listener.listen(BACKLOG)
        first, *others = [entry.id for entry in lineup.registry.entries]
        tell(f"Serving {first} on {app.state.host.url}/v1")
        if others:
            tell(f"And when they are asked for: {', '.join(others)}")
        systemd.notify("READY=1", f"STATUS=Serving {first}")
        yield


async def _serve(app: Starlette, settings: Settings, listener: socket.socket, signals: Signals, loss: Loss) -> None:
    """Answer requests until a signal comes, and those that have come by then; or until the group falls apart."""
    server = _Server(_config(app, settings))

    async def end() -> None:
        await signals.ending.wait()
        systemd.notify("STOPPING=1", "STATUS=Draining")
        await app.state.drain.finish(settings.drain_seconds, tell)
        # Streams that plugins serve end with it.
        server.handle_exit(signal.SIGTERM, None)

    async def end_without_group() -> None:
        await loss.ended()
        signals.ending.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in (end(), end_without_group(), systemd.watchdog())]
        await server.serve(sockets=[listener])
        for task in tasks:
            task.cancel()


async def _leave_behind(workers: ThreadPoolExecutor, status: int) -> None:
    """End although a plugin's coroutine does not let itself be cancelled, or a thread loads or downloads a model."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (await asyncio.wait(left, timeout=END_SECONDS))[1]:
        logger.error("Plugins do not end; the server does.")
        end_process(status)
    workers.shutdown(wait=False, cancel_futures=True)
    if not _end(ENGINES, WORKERS):
        logger.debug("Something is still at work; the server ends.")
        end_process(status)


def _end(*names: str) -> bool:
    """Whether threads of these names have ended, which they may take a moment for."""
    deadline = time.monotonic() + LAST_SECONDS
    while any(thread.name.startswith(names) for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _config(app: Starlette, settings: Settings) -> uvicorn.Config:
    limits = Limits(
        header_seconds=settings.header_seconds,
        body_seconds=settings.body_seconds,
        write_seconds=settings.write_seconds,
        max_connections=settings.max_connections,
    )
    return uvicorn.Config(
        app,
        http=protocol(limits),
        log_config=None,
        lifespan="off",
        backlog=BACKLOG,
        timeout_graceful_shutdown=END_SECONDS,
    )


def tell(line: str) -> None:
    """Show a line to whoever started the server, and may be gone."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)
