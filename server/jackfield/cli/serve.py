"""``jackfield serve``."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from jackfield import settings as configuration
from jackfield.cli.garbage import kept
from jackfield.cli.options import settings_of, settings_options
from jackfield.cli.progress import RichProgress
from jackfield.cli.reloading import set_log_level
from jackfield.cli.signals import ending_at_once
from jackfield.errors import ConfigurationError
from jackfield.group import keeper, mpi
from jackfield.group.rank import from_environment
from jackfield.models.device import import_mlx_lm, load_blas
from jackfield.models.progress import Progress
from jackfield.one_line import OneLine
from jackfield.security.exposure import check_exposure
from jackfield.security.key_file import usual_place
from jackfield.security.keyring import Keyring
from jackfield.settings import Settings

OPEN_FILES = 10_240
"""Each connection is one. macOS grants so many at most, and 256 to who does not ask."""

EXAMPLES = """\b
Examples:
  jackfield serve                                    the small model that comes along
  jackfield serve --model mlx-community/Qwen2.5-Coder-32B-Instruct-4bit
  jackfield serve --preset qwen2.5-coder-32b         the same with a context of 32k, in 25 GB
  jackfield serve --model ./model.gguf --port 9000
  jackfield serve --model Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M
  jackfield serve --model Qwen/Qwen3-4B --adapter sql=./sql --adapter law=org/qwen3-4b-law
  jackfield serve --model starter --model mlx-community/Qwen3-4B-4bit --alias gpt-4o-mini=starter
  mlx.launch --hostfile hosts.json jackfield serve   one model on several machines, see docs/scale.md
"""


@click.command(epilog=EXAMPLES)
@settings_options
def serve(config: Path | None, **flags: Any) -> None:
    """Serve a model to OpenAI clients.

    Every setting can also be given as JACKFIELD_<NAME> in the environment, or in a TOML file: see jackfield config.
    """
    rank = from_environment(os.environ)
    if rank is not None and not keeper.does_the_work(os.environ):
        command = [sys.executable, "-m", "jackfield", *sys.argv[1:]]
        sys.exit(keeper.keep_up(command) if rank.returns else keeper.see_through(command, rank.leads))
    read = partial(configuration.read, settings_of(flags), config)
    found = read()
    settings = found.settings
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    set_log_level(settings.log_level)
    with kept():
        # In this order, and before anything else imports MLX.
        load_blas()
        import_mlx_lm()
        from jackfield.cli.following import follow  # noqa: PLC0415
        from jackfield.cli.presets import check_preset  # noqa: PLC0415
        from jackfield.cli.server import run, tell  # noqa: PLC0415
        from jackfield.hooks.discovery import discover  # noqa: PLC0415
        from jackfield.models.hub_adapter import fetch_adapter  # noqa: PLC0415
        from jackfield.models.lineup import adapters_at_start, at_start  # noqa: PLC0415
        from jackfield.models.sources import SOURCES, resolve  # noqa: PLC0415

        hooks = discover(settings)
    allow_open_files()
    check_preset(settings)
    plugged = hooks.model_sources()
    sources = (*plugged, *SOURCES)

    def fetch(name: str, progress: Progress) -> Path:
        return resolve(name, cache=settings.cache_dir, progress=progress, sources=sources)

    if rank is not None and not rank.leads:
        follow(rank, settings, partial(fetch, progress=RichProgress()), tell, hooks)
        return
    keys = Keyring(settings.keys_file or usual_place(), os.environ)
    with _listen(settings) as listener, ending_at_once():
        check_exposure(listener, asks=keys.asks or hooks.has("authenticate"), open_to_network=settings.open_to_network)
        # Here, where a signal ends it at once.
        folders = {name: fetch(name, RichProgress()) for name in at_start(settings)}
        for adapter in adapters_at_start(settings):
            fetch_adapter(adapter, RichProgress())
        asyncio.run(
            run(
                found,
                read,
                lambda name, progress: folders.get(name) or fetch(name, progress),
                listener,
                hooks=hooks,
                keys=keys,
                rank=rank,
                plugged=plugged,
            )
        )
    if rank is not None:
        mpi.finish(rank)


def allow_open_files() -> None:
    """Ask the system for as many open files as many connections take, as far as it grants them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listen(settings: Settings) -> socket.socket:
    """Claim the port before the model is loaded, so that a port in use is told at once; it opens when all is ready."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named by number, because asyncio turns Nagle's delay off only for sockets that say so: 40 ms a request otherwise.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.",
            suggestions=("Choose another port with --port.", "Stop the program that uses this one."),
        ) from error
    return listener
