"""From settings to a server that answers: fetch the model, load it, open the port."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import uvicorn

from jackfield.app import create_app
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Scheduler
from jackfield.engine.thread import Engine
from jackfield.models import cpu
from jackfield.models.device import Device, describe, detect_device, load_blas
from jackfield.models.folder import read_json
from jackfield.models.loading import Network, load_network
from jackfield.models.memory import host_memory
from jackfield.models.registry import Registry, ServedModel
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


async def run(settings: Settings, folder: Path, listener: socket.socket) -> None:
    """Serve the model in ``folder`` until a signal comes.

    Raises:
        ModelLoadError: the model cannot be served; the port has not been opened then.
    """
    model = await load(settings, folder)
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


async def load(settings: Settings, folder: Path) -> ServedModel:
    """Load the model and generate a first token with it."""
    tokenizer = Tokenizer(folder)
    loaded: list[tuple[int, int]] = []
    engine = Engine(_scheduler(settings, folder, loaded), settings.max_batch + settings.max_queue)
    await engine.start()
    ((vocabulary, longest),) = loaded
    return ServedModel(
        id=_model_id(settings.model),
        tokenizer=tokenizer,
        engine=engine,
        context_length=min(settings.context_length or longest, longest),
        vocabulary=vocabulary,
        defaults=read_json(folder / "generation_config.json"),
    )


def _scheduler(settings: Settings, folder: Path, loaded: list[tuple[int, int]]) -> Callable[[], Scheduler]:
    """What loads the model, and then tells its vocabulary and context length in ``loaded``."""

    def load_on_engine_thread() -> Scheduler:
        device = detect_device(load_blas())
        network = load_network(folder, device, dtype=settings.dtype, prepare=cpu.prepare)
        click.echo(describe(device, network.dtype), err=True)
        runner = Runner(network.model)
        loaded.append((runner.vocabulary, network.context_length))
        scheduler = Scheduler(runner, PrefixCache(_cache_bytes(settings, device, network)), settings.max_batch)
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


def _cache_bytes(settings: Settings, device: Device, network: Network) -> int:
    if settings.prefix_cache_bytes is not None:
        return settings.prefix_cache_bytes
    free = host_memory().available if device.kind == "cpu" else device.memory_bytes - network.nbytes
    return max(free, 0) // 6
