"""``jackfield models``: what is on this machine, what could be, and what becomes of it."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from jackfield import settings as configuration
from jackfield.cli.progress import RichProgress
from jackfield.errors import ConfigurationError, JackfieldError, ModelLoadError
from jackfield.models.device import import_mlx_lm, load_blas
from jackfield.models.sizes import gigabytes, parse_size
from jackfield.settings import Settings

if TYPE_CHECKING:
    from jackfield.models.architecture import DeviceKind
    from jackfield.models.inventory import Stored

EXAMPLES = """\b
Examples:
  jackfield models list                                what is on this machine, and whether it fits in memory
  jackfield models recommend                           which Qwen model fits this machine
  jackfield models pull Qwen/Qwen2.5-Coder-7B-Instruct
  jackfield models quantize Qwen/Qwen2.5-Coder-7B-Instruct --bits 4
  jackfield models info Qwen/Qwen2.5-Coder-7B-Instruct:4bit
  jackfield models remove Qwen/Qwen2.5-Coder-7B-Instruct
"""

LIST_EPILOG = """\b
Keys of --json: models, prefix_cache_bytes, models_bytes, disk_free_bytes; of each model: name, kind (hub, starter,
gguf, quantized, adapter), folder, bytes, used (seconds since 1970), base_model (of an adapter), weights_type,
parameters, context_length, context_that_fits, fits, obstacle (why it cannot be served). null stands for what is not
known.
"""

PULL_EPILOG = """\b
Examples:
  jackfield models pull starter
  jackfield models pull mlx-community/Qwen2.5-Coder-7B-Instruct-4bit mlx-community/Qwen3-4B-4bit
  jackfield models pull org/qwen3-4b-law               an adapter
  jackfield models pull Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M
  jackfield models pull ./model.gguf                   converts it
\b
Exit status: 0 if all of them are here, 1 if one is not. Keys of --json, for each: name, kind (model, adapter), folder,
bytes, base_model (of an adapter), error.
"""

REMOVE_EPILOG = """\b
Examples:
  jackfield models remove mlx-community/Qwen3-4B-4bit
  jackfield models remove Qwen/Qwen3-4B:4bit ./model.gguf --yes
"""

INFO_EPILOG = """\b
Keys of --json: name, origin, licence, folder, downloaded, files (name, bytes), model_type, parameters, weights_type,
context_length, capabilities, disk_bytes, plan (as doctor has it). null stands for what is not known.
"""

QUANTIZE_EPILOG = """\b
Examples:
  jackfield models quantize Qwen/Qwen2.5-Coder-32B-Instruct       then: jackfield serve --model NAME:4bit
  jackfield models quantize ./model --bits 8 --out ./model-8bit
"""

RECOMMEND_EPILOG = """\b
Examples:
  jackfield models recommend
  jackfield models recommend --memory 32GB --device metal
\b
Exit status: 0 if one fits, 3 if none does. Keys of --json, for each, the best first: model, purpose, bits, parameters,
context_length, kv_bits, weights_bytes, sequence_bytes, total_bytes, why, command.
"""

PULLED = ("name", "kind", "folder", "bytes", "base_model", "error")
"""What is told of each that was pulled."""

NONE_FITS = 3
"""Exit status."""

config_option = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file with settings, as for serve."
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(epilog=EXAMPLES)
def models() -> None:
    """Fetch, list, quantize and remove models."""


def _settings(config: Path | None) -> Settings:
    """The settings, with MLX ready to be imported by whatever is imported next."""
    settings = configuration.read({}, config).settings
    load_blas()
    import_mlx_lm()
    return settings


def _print(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


@models.command("list", epilog=LIST_EPILOG)
@config_option
@json_option
def list_(config: Path | None, as_json: bool) -> None:
    """List the models on this machine, the disk they use, and whether they fit in its memory.

    These are Hugging Face's cache and Jackfield's own: models that were fetched, converted or quantized. What only
    other programs can use is listed with the reason.
    """
    settings = _settings(config)
    from jackfield.cli.stock import Stock  # noqa: PLC0415

    stock = Stock(settings)
    if as_json:
        _print(stock.as_json())
    else:
        stock.show()


@models.command(epilog=PULL_EPILOG)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@config_option
@json_option
def pull(names: Sequence[str], config: Path | None, as_json: bool) -> None:
    """Fetch models, so that serve finds them here.

    NAME is starter, a Hugging Face name, of a model, an adapter or a GGUF file (ORG/NAME:Q4_K_M), or a .gguf file on
    this machine; GGUF files are converted. A download that was interrupted goes on where it was.
    """
    settings = _settings(config)
    from jackfield.hooks.discovery import discover  # noqa: PLC0415
    from jackfield.models.sources import SOURCES, resolve  # noqa: PLC0415

    sources = (*discover(settings).model_sources(), *SOURCES)
    fetch = partial(resolve, cache=settings.cache_dir, progress=RichProgress(), sources=sources)
    results = []
    for name in names:
        try:
            _check_space(name, settings)
            results.append(_fetched(name, fetch))
        except JackfieldError as error:
            results.append(dict.fromkeys(PULLED) | {"name": name, "error": error.message})
            if not as_json:
                _complain(name, error)
        else:
            if not as_json:
                _tell(results[-1])
    if as_json:
        _print(results)
    sys.exit(any(result["error"] for result in results))


def _fetched(name: str, fetch: Callable[[str], Path]) -> dict[str, Any]:
    """A model, or an adapter for one."""
    from jackfield.models.adapter_folder import base_model  # noqa: PLC0415
    from jackfield.models.hub import AdapterError  # noqa: PLC0415
    from jackfield.models.hub_adapter import fetch_adapter  # noqa: PLC0415
    from jackfield.models.inventory import size_of  # noqa: PLC0415

    kind, base = "model", None
    try:
        folder = fetch(name)
    except AdapterError:
        folder = fetch_adapter(name, RichProgress())
        kind, base = "adapter", base_model(folder)
    return dict(zip(PULLED, (name, kind, str(folder), size_of(folder), base, None), strict=True))


def _tell(result: dict[str, Any]) -> None:
    name, base = result["name"], result["base_model"] or "MODEL"
    click.echo(f"{name} is here, {gigabytes(result['bytes'])}: {result['folder']}")
    if result["kind"] == "adapter":
        short = name.partition("@")[0].rpartition("/")[2]
        click.echo(f"It is an adapter: jackfield serve --model {base} --adapter {short}={name}")


def _complain(name: str, error: JackfieldError) -> None:
    click.echo(f"{name}: {error.message}", err=True)
    for suggestion in error.suggestions:
        click.echo(f"  - {suggestion}", err=True)


def _check_space(name: str, settings: Settings) -> None:
    """Refuse a download that the disk has no room for; what is wrong besides is found by whoever fetches."""
    from jackfield.models.description import describe_model  # noqa: PLC0415
    from jackfield.models.inventory import unfinished_bytes  # noqa: PLC0415

    try:
        model = describe_model(name, cache=settings.cache_dir)
    except ModelLoadError:
        return
    needed = (model.disk_bytes or 0) - unfinished_bytes(re.split("[@:]", name)[0])
    folder = model.disk.resolve()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < needed:
        raise ModelLoadError(
            f"{gigabytes(needed)} are needed in {folder}, {gigabytes(free)} are free.",
            suggestions=("Free some space: jackfield models list", "Set HF_HOME to a folder on another disk."),
        )


@models.command(epilog=REMOVE_EPILOG)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
def remove(names: Sequence[str], yes: bool, config: Path | None) -> None:
    """Delete models from the caches; of a .gguf file its conversion, never the file, and never a folder of yours.

    A server that has such a model in memory goes on with it until it has to load it again.
    """
    settings = _settings(config)
    from jackfield.models.inventory import inventory, remove  # noqa: PLC0415

    here = inventory(settings.cache_dir)
    chosen = list({one.folder: one for name in names for one in _named(name, here)}.values())
    for one in chosen:
        click.echo(f"{one.name} ({gigabytes(one.nbytes)}): {one.folder}")
    if not yes:
        click.confirm("Delete this?" if len(chosen) == 1 else "Delete all of these?", abort=True, err=True)
    try:
        freed = remove(chosen)
    except OSError as error:
        raise ModelLoadError(
            f"{error.filename} cannot be deleted: {error.strerror}.", suggestions=("See who may write there.",)
        ) from error
    click.echo(f"{gigabytes(freed)} are free again.")


def _named(name: str, here: "list[Stored]") -> "list[Stored]":
    from jackfield.models.inventory import is_own  # noqa: PLC0415

    if found := [one for one in here if one.called(name)]:
        return found
    if is_own(name):
        raise ModelLoadError(
            f"{name} is yours: only what Jackfield or the Hugging Face tools have fetched or made is deleted.",
            suggestions=("Delete it yourself, if that is what you want.",),
        )
    raise ModelLoadError(
        f"There is no {name} in the caches.", suggestions=("See what there is: jackfield models list",)
    )


@models.command(epilog=INFO_EPILOG)
@click.argument("name")
@config_option
@json_option
def info(name: str, config: Path | None, as_json: bool) -> None:
    """Say what is known of a model: what it can do, its files, its licence, what it takes of disk and memory.

    Its weights are not downloaded for that.
    """
    settings = _settings(config)
    from jackfield.cli.model_card import read_card  # noqa: PLC0415

    card = read_card(settings.of_model(name))
    if as_json:
        _print(card.as_json())
    else:
        card.show()


@models.command(epilog=QUANTIZE_EPILOG)
@click.argument("name")
@click.option("--bits", type=click.Choice(["2", "3", "4", "5", "6", "8"]), default="4", show_default=True)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    default="64",
    show_default=True,
    help="Weights that share a scale.",
)
@click.option("--out", type=click.Path(path_type=Path), help="A new folder for it.  [default: Jackfield's cache]")
@config_option
def quantize(name: str, bits: str, group_size: str, out: Path | None, config: Path | None) -> None:
    """Make a copy of a model with fewer bits for each weight, which takes less memory and is faster.

    NAME is a folder or a Hugging Face name, which is downloaded first. The copy is served as NAME:4bit.
    """
    settings = _settings(config)
    from jackfield.models.inventory import size_of  # noqa: PLC0415
    from jackfield.models.quantize import quantize  # noqa: PLC0415
    from jackfield.models.quantized import Recipe, is_outdated, state_of, write_origin  # noqa: PLC0415
    from jackfield.models.sources import resolve  # noqa: PLC0415
    from jackfield.models.store import build_once  # noqa: PLC0415

    recipe = Recipe(name, int(bits), int(group_size)).anywhere()
    if out is not None and out.exists():
        raise ConfigurationError(f"{out} is there already.", suggestions=("Choose another --out.",))
    source = resolve(name, cache=settings.cache_dir, progress=RichProgress())
    target = out.absolute() if out else recipe.folder(settings.cache_dir)
    state = state_of(source)
    if is_outdated(target, state):
        click.echo(f"{name} has changed since it was quantized, so that is done again.", err=True)

    def build(folder: Path) -> None:
        quantize(source, folder, bits=recipe.bits, group_size=recipe.group_size, progress=RichProgress())
        if out is None:
            write_origin(folder, recipe.name, state=state)

    build_once(target, build, RichProgress(), is_outdated=lambda: is_outdated(target, state))
    if out:
        target.with_name(f"{target.name}.lock").unlink(missing_ok=True)
    click.echo(f"{recipe.bits} bits: {gigabytes(size_of(target))}, where it was {gigabytes(size_of(source))}: {target}")
    click.echo(f"jackfield serve --model {out or recipe.name}")


@models.command(epilog=RECOMMEND_EPILOG)
@click.option("--memory", help="For a machine with so much memory, as it is sold: 48GB (of the GPU for cuda).")
@click.option("--device", type=click.Choice(["metal", "cuda", "cpu"]), help="Of that machine.  [default: as here]")
@click.option("--all", "everything", is_flag=True, help="All that fit, and not just the first five.")
@config_option
@json_option
def recommend(memory: str | None, device: str | None, everything: bool, config: Path | None, as_json: bool) -> None:
    """Say which Qwen models fit this machine, the best first: with how many bits, and with how much context."""
    settings = _settings(config)
    from jackfield.cli.recommendation import Recommended  # noqa: PLC0415

    machine = parse_size(memory, binary=True) if memory else None
    found = Recommended(settings, machine, cast("DeviceKind | None", device))
    if as_json:
        _print(found.as_json())
    else:
        found.show(None if everything else 5)
    sys.exit(0 if found.models else NONE_FITS)
