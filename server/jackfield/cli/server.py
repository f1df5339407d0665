"""From settings to a server that answers: fetch the model, load it, open the port."""

import asyncio
import contextlib
import json
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import uvicorn

from jackfield.app import create_app
from jackfield.cli.progress import RichProgress
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Scheduler
from jackfield.engine.thread import Engine
from jackfield.models import cpu
from jackfield.models.device import describe, detect_device, load_blas
from jackfield.models.loading import Network, load_network
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.sources import resolve
from jackfield.models.tokenizer import Tokenizer
from jackfield.settings import Settings

logger = logging.getLogger(__name__)

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


async def run(settings: Settings, listener: socket.socket) -> None:
    """Serve until a signal comes.

    Raises:
        ModelLoadError: the model cannot be served; the port has not been opened then.
    """
    model = await load(settings)
    host, port = listener.getsockname()[:2]
    listener.listen(BACKLOG)
    click.echo(f"Serving {model.id} on http://{host}:{port}/v1", err=True)
    app = create_app(settings, Registry([model]))
    config = uvicorn.Config(
        app, log_config=None, access_log=settings.log_level == "debug", lifespan="off", backlog=BACKLOG
    )
    try:
        await _Server(config).serve(sockets=[listener])
    finally:
        await model.engine.stop()


async def load(settings: Settings) -> ServedModel:
    """Fetch what is missing, load the model and generate a first token with it."""
    folder = resolve(settings.model, cache=settings.cache_dir, progress=RichProgress())
    tokenizer = Tokenizer(folder)
    network: list[Network] = []
    engine = Engine(_scheduler(settings, folder, network), settings.max_batch + settings.max_queue)
    await engine.start()
    context_length = min(settings.context_length or network[0].context_length, network[0].context_length)
    return ServedModel(
        id=_model_id(settings.model),
        tokenizer=tokenizer,
        engine=engine,
        context_length=context_length,
        vocabulary=network[0].vocabulary_size,
        defaults=_defaults(folder),
    )


def _scheduler(settings: Settings, folder: Path, loaded: list[Network]) -> Callable[[], Scheduler]:
    def load_on_engine_thread() -> Scheduler:
        device = detect_device(load_blas())
        network = load_network(folder, device, dtype=settings.dtype, prepare=cpu.prepare)
        click.echo(describe(device, network.dtype), err=True)
        loaded.append(network)
        scheduler = Scheduler(Runner(network.model), PrefixCache(settings.prefix_cache_bytes), settings.max_batch)
        _warm_up(scheduler)
        return scheduler

    return load_on_engine_thread


def _warm_up(scheduler: Scheduler) -> None:
    """Generate one token: what does not work shows now, and the first request finds everything in place."""
    scheduler.submit(GenerationRequest("warm-up", (0, 0), max_tokens=1, sampling=SamplingParameters(temperature=0)))
    while not scheduler.idle:
        scheduler.step()


def _model_id(name: str) -> str:
    """What clients call the model: a Hugging Face name as it is, else the folder's or file's own name."""
    path = Path(name)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else name


def _defaults(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}
