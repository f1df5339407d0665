"""``jackfield serve``."""

import asyncio
import contextlib
import logging
import resource
import socket
from functools import partial
from pathlib import Path
from typing import Any

import click

from jackfield import settings as configuration
from jackfield.cli.progress import RichProgress
from jackfield.cli.reloading import set_log_level
from jackfield.cli.signals import ending_at_once
from jackfield.errors import ConfigurationError
from jackfield.models.device import import_mlx_lm, load_blas
from jackfield.models.progress import Progress
from jackfield.settings import Settings

OPEN_FILES = 10_240
"""Each connection is one. macOS grants so many at most, and 256 to who does not ask."""

EXAMPLES = """\b
Examples:
  jackfield serve                                    the small model that comes along
  jackfield serve --model mlx-community/Qwen2.5-Coder-32B-Instruct-4bit
  jackfield serve --model ./model.gguf --port 9000
  jackfield serve --model starter --model mlx-community/Qwen3-4B-4bit --alias gpt-4o-mini=starter
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="starter, a folder, a .gguf file or a Hugging Face name; given again, more that are loaded on demand.  "
    "[default: starter]",
)
@click.option("--alias", "aliases", multiple=True, help="Another name for a model, NAME=MODEL; may be repeated.")
@click.option(
    "--adapter", "adapters", multiple=True, help="A LoRA adapter for the model, NAME=FOLDER; may be repeated."
)
@click.option("--unload-after", type=float, help="Seconds after which an unused model leaves memory.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8080]")
@click.option("--dtype", help="On a CPU: auto, float32 or keep.  [default: auto]")
@click.option("--context-length", type=int, help="Fewer tokens than the model could take.")
@click.option("--max-batch", type=int, help="Requests answered at the same time.  [default: 32]")
@click.option("--kv-bits", help="Quantize keys and values to 8 or 4 bits.")
@click.option("--memory-limit", help="The most memory to use, such as 25GB.  [default: what the device has]")
@click.option("--log-level", help="debug, info, warning or error.  [default: info]")
@click.option("--disable-plugin", "disabled_plugins", multiple=True, help="Do without this plugin; may be repeated.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file with settings.")
def serve(config: Path | None, **flags: Any) -> None:
    """Serve a model to OpenAI clients.

    Every setting can also be given as JACKFIELD_<NAME> in the environment, or in a TOML file.
    """
    flags["disabled_plugins"] = flags["disabled_plugins"] or None
    flags["model"], *more = flags.pop("models") or (None,)
    flags["models"] = ",".join(more) or None
    for pairs in ("aliases", "adapters"):
        flags[pairs] = ",".join(flags[pairs]) or None
    read = partial(configuration.read, flags, config)
    found = read()
    settings = found.settings
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    set_log_level(settings.log_level)
    # In this order, and before anything else imports MLX.
    load_blas()
    import_mlx_lm()
    from jackfield.cli.server import run  # noqa: PLC0415
    from jackfield.hooks.discovery import discover  # noqa: PLC0415
    from jackfield.models.lineup import at_start  # noqa: PLC0415
    from jackfield.models.sources import SOURCES, resolve  # noqa: PLC0415

    allow_open_files()
    hooks = discover(settings)
    with _listen(settings) as listener, ending_at_once():
        sources = (*hooks.model_sources(), *SOURCES)

        def fetch(name: str, progress: Progress) -> Path:
            return resolve(name, cache=settings.cache_dir, progress=progress, sources=sources)

        # Here, where a signal ends it at once.
        folders = {name: fetch(name, RichProgress()) for name in at_start(settings)}
        asyncio.run(
            run(found, read, lambda name, progress: folders.get(name) or fetch(name, progress), listener, hooks)
        )


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
