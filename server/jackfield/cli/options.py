"""The flags that stand for settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = [
    click.option(
        "--model",
        "models",
        multiple=True,
        help="starter, a folder, a .gguf file or a Hugging Face name, ORG/NAME:Q4_K_M for a GGUF file there; given "
        "again, more that are loaded on demand.  "
        "[default: starter]",
    ),
    click.option("--preset", help="A model with settings that suit it, such as qwen2.5-coder-32b."),
    click.option("--alias", "aliases", multiple=True, help="Another name for a model, NAME=MODEL; may be repeated."),
    click.option(
        "--adapter",
        "adapters",
        multiple=True,
        help="A LoRA or DoRA adapter for the model, NAME=FOLDER or NAME=ORG/REPOSITORY; may be repeated.",
    ),
    click.option("--unload-after", type=float, help="Seconds after which an unused model leaves memory."),
    click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
    click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8080]"),
    click.option(
        "--open-to-network", is_flag=True, default=None, help="Let others in without a key, beyond this machine."
    ),
    click.option("--dtype", help="On a CPU: auto, float32 or keep.  [default: auto]"),
    click.option("--parallelism", help="Under mlx.launch: auto, tensor or pipeline.  [default: auto]"),
    click.option("--context-length", type=int, help="Fewer tokens than the model could take."),
    click.option("--max-batch", type=int, help="Requests answered at the same time.  [default: 32]"),
    click.option("--kv-bits", help="Quantize keys and values to 8 or 4 bits."),
    click.option("--memory-limit", help="The most memory to use, such as 25GB.  [default: what the device has]"),
    click.option("--log-level", help="debug, info, warning or error.  [default: info]"),
    click.option(
        "--disable-plugin", "disabled_plugins", multiple=True, help="Do without this plugin; may be repeated."
    ),
    click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file with settings."),
]


def settings_options(command: Command) -> Command:
    """Give a command these flags; it gets the file as ``config``, and hands the rest to `settings_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags as settings; None stands for one that was not given."""
    model, *more = flags["models"] or (None,)
    whole = flags | {"model": model, "models": more}
    for name in ("models", "aliases", "adapters", "disabled_plugins"):
        whole[name] = ",".join(whole[name]) or None
    return whole
