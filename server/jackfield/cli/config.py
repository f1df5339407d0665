"""``jackfield config``: what is set, and where that comes from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jackfield import settings as configuration
from jackfield.cli.options import settings_of, settings_options
from jackfield.errors import ConfigurationError
from jackfield.settings import Configuration, Origin, describe, file_places
from jackfield.settings.origin import unknown_variables

EXAMPLES = """\b
Examples:
  jackfield config show                        all settings, their values, and where these come from
  jackfield config show --changed --port 9000  what differs from the defaults, with these flags
  jackfield config check --config new.toml     whether a server would start with it
  jackfield config init                        a file with all settings, to be changed
"""

MASK = "**********"
LONGEST = 100
"""Characters of a value; --json has all of it."""


class _Row(NamedTuple):
    name: str
    value: Any
    origin: Origin


@click.group(epilog=EXAMPLES)
def config() -> None:
    """Show, check and write settings."""


@config.command(epilog=EXAMPLES)
@settings_options
@click.option("--changed", is_flag=True, help="Leave out what is as it is by default.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(config: Path | None, changed: bool, as_json: bool, **flags: Any) -> None:
    """Show all settings and where each comes from; secrets are masked.

    Flags, the environment and the file count as they do for serve.
    """
    found = configuration.read(settings_of(flags), config)
    rows = [row for row in _rows(found) if row.origin.kind != "default" or not changed]
    unknown = unknown_variables(os.environ)
    if as_json:
        click.echo(json.dumps(_document(found, rows, unknown), indent=2))
    else:
        _show(found, rows, unknown)


@config.command()
@settings_options
def check(config: Path | None, **flags: Any) -> None:
    """Say whether the settings are right, those of plugins and keys too."""
    found = configuration.read(settings_of(flags), config)
    _check_keys(found)
    click.echo(f"The settings are right. {_file(found)}")


@config.command()
def path() -> None:
    """Show where the file with the settings is, or would be."""
    click.echo(configuration.find_file() or file_places()[0])


@config.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to; - shows it.")
def init(output: Path | None) -> None:
    """Write a file with all settings at their defaults, ready to be changed."""
    file = output or file_places()[0]
    if str(file) == "-":
        click.echo(describe.template())
        return
    if file.exists():
        raise ConfigurationError(f"{file} is there already.", suggestions=("Choose another --output.",))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(describe.template(), "utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be written: {error.strerror}.", suggestions=("Choose another --output.",)
        ) from error
    click.echo(f"Made {file}.")


def _rows(found: Configuration) -> list[_Row]:
    values = found.settings.model_dump(mode="json", exclude={"plugins"})
    own = [_Row(name, value, found.origin(name)) for name, value in values.items()]
    return own + [row for report in _plugin_reports(found) for row in _plugin_rows(found, report)]


def _plugin_reports(found: Configuration) -> list[dict[str, Any]]:
    # Plugins are imported for this, which takes its time.
    from jackfield.hooks.discovery import discover  # noqa: PLC0415

    return discover(found.settings).reports()


def _check_keys(found: Configuration) -> None:
    from jackfield.doctor.keys import key_checks  # noqa: PLC0415 - see above
    from jackfield.hooks.discovery import discover  # noqa: PLC0415

    for finding in key_checks(found.settings, discover(found.settings)):
        if finding.verdict == "failure":
            raise ConfigurationError(finding.told, suggestions=finding.advice)


def _plugin_rows(found: Configuration, report: Mapping[str, Any]) -> list[_Row]:
    table = found.settings.plugins.get(report["name"], {})
    # Nobody knows which settings of a plugin are secret that could not be loaded.
    values = report["settings"] or dict.fromkeys(table, MASK)
    return [
        _Row(f"plugins.{report['name']}.{name}", value, found.origin("plugins") if name in table else Origin())
        for name, value in values.items()
    ]


def _document(found: Configuration, rows: list[_Row], unknown: list[str]) -> dict[str, Any]:
    settings = {row.name: {"value": row.value, "from": row.origin.kind, "name": row.origin.name} for row in rows}
    return {"file": str(found.file) if found.file else None, "settings": settings, "unknown_variables": unknown}


def _show(found: Configuration, rows: list[_Row], unknown: list[str]) -> None:
    table = Table(Column("Setting", no_wrap=True), "Value", "From", box=None, pad_edge=False)
    for row in rows:
        value = json.dumps(row.value, ensure_ascii=False)
        shown = value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"
        style = "dim" if row.origin.kind == "default" else "bold"
        table.add_row(Text(row.name, style), Text(shown, style), Text(_from(row.origin), style))
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(f"\n{_file(found)}"), soft_wrap=True)
    if unknown:
        console.print(Text(f"In the environment, but no settings: {', '.join(unknown)}"), soft_wrap=True)


def _from(origin: Origin) -> str:
    return f"{origin.kind} {origin.name}".strip()


def _file(found: Configuration) -> str:
    if found.file:
        return f"The file is {found.file}."
    return f"There is no file; it would be found at {' or '.join(map(str, file_places()))}."
