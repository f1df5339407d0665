"""``jackfield service``: have the server started by systemd or launchd, or in a container."""

import sys
from pathlib import Path
from typing import cast

import click

from jackfield import settings as configuration
from jackfield.cli.service_files import Kind, Service, ServiceFile
from jackfield.errors import ConfigurationError

EXAMPLES = """\b
Examples:
  jackfield service install                             for you alone, with systemd or launchd
  sudo jackfield service install --system --run-as me   for the whole machine
  jackfield service install --print                     shows the file
  jackfield service install --kind container            a Containerfile, here
"""

_kind = click.option(
    "--kind",
    type=click.Choice(["systemd", "launchd", "container"]),
    default="launchd" if sys.platform == "darwin" else "systemd",
    show_default=True,
    help="Who is to start it.",
)
_system = click.option("--system/--user", "system", help="For the whole machine, or for you alone.  [default: --user]")


@click.group(epilog=EXAMPLES)
def service() -> None:
    """Have the server started with the machine, and again when it fails."""


@service.command(epilog=EXAMPLES)
@_kind
@_system
@click.option("--run-as", metavar="USER", help="With --system: as whom it runs.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="The TOML file it reads its settings from."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to put the file instead.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--print", "shows", is_flag=True, help="Show the file, and write nothing.")
def install(
    kind: str,
    *,
    system: bool,
    run_as: str | None,
    config: Path | None,
    output: Path | None,
    force: bool,
    shows: bool,
) -> None:
    """Write the file that starts the server, and say which commands put it to use.

    Settings come from --config or from where they usually are; flags of serve have to go into that file.
    """
    found = configuration.read({}, config)
    made = Service(found.settings, config, system, run_as).file(cast("Kind", kind))
    if shows:
        click.echo(made.text, nl=False)
        return
    path = output or made.path
    _write(path, made, force=force)
    click.echo(f"Made {path}. Next:")
    for command in made.start:
        click.echo(f"  {command}")


@service.command()
@_kind
@_system
def uninstall(kind: str, system: bool) -> None:
    """Delete that file again."""
    made = Service(configuration.Settings(), system=system, run_as="anybody").file(cast("Kind", kind))
    try:
        made.path.unlink()
    except OSError as error:
        raise _refused(made.path, "deleted", error) from error
    click.echo(f"Deleted {made.path}. If it runs:")
    for command in made.stop or ("podman rm --force jackfield",):
        click.echo(f"  {command}")


def _write(path: Path, made: ServiceFile, *, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigurationError(
            f"{path} is there already.", suggestions=("Write over it with --force.", "Look at what is new: --print.")
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made.text, "utf-8")
    except OSError as error:
        raise _refused(path, "written", error) from error


def _refused(path: Path, done: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be {done}: {error.strerror}.",
        suggestions=("For the whole machine: sudo.", "See jackfield service install --help."),
    )
