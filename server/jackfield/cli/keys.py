"""``jackfield keys``: who may use the server."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jackfield import settings as configuration
from jackfield.errors import ConfigurationError
from jackfield.security import key_file
from jackfield.security.key import NAME, PRIORITIES, Key, Scope, digest, new_secret
from jackfield.settings.nearest import nearest

EXAMPLES = """\b
Examples:
  jackfield keys create ada
  jackfield keys create prometheus --scope metrics
  jackfield keys create nightly --priority background --rpm 60 --expires 30d
  jackfield keys list
  jackfield keys revoke ada

A server that runs takes changes over within a second. Once there has been a key, every request needs one.
"""

SPAN = re.compile(r"(\d{1,5})([hdw])")
UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class _Expiry(click.ParamType[datetime]):
    """``30d``, ``12h``, ``2w`` or a date such as ``2030-12-31``, whose end counts, in UTC."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if span := SPAN.fullmatch(str(value)):
            return datetime.now(UTC) + timedelta(**{UNITS[span[2]]: int(span[1])})
        try:
            day = datetime.strptime(str(value), "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{value!r} is neither like 30d, 12h or 2w nor a date like 2030-12-31.", param, ctx)
        if day.date() == date.max:
            self.fail(f"{value} is the last day there is: leave --expires out.", param, ctx)
        if day + timedelta(days=1) <= datetime.now(UTC):
            self.fail(f"{value} is over.", param, ctx)
        return day + timedelta(days=1)


@click.group(epilog=EXAMPLES)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file with settings, as for serve."
)
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="Where the keys are, if not as usual.")
@click.pass_context
def keys(context: click.Context, config: Path | None, file: Path | None) -> None:
    """Make, list and revoke API keys."""
    context.obj = file or configuration.read({}, config).settings.keys_file or key_file.usual_place()


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(get_args(Scope)),
    help="What it is for; may be repeated.  [default: inference]",
)
@click.option("--priority", type=click.Choice(list(PRIORITIES)), default="normal", show_default=True)
@click.option("--rpm", type=click.IntRange(1), help="Requests per minute.")
@click.option("--tpm", type=click.IntRange(1), help="Tokens per minute, of prompts and answers.")
@click.option("--expires", type=_Expiry(), help="30d, 12h, 2w, or the last day it is good for: 2030-12-31.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def create(  # noqa: PLR0917 - each is an option
    file: Path,
    name: str,
    scopes: Sequence[Scope],
    priority: Any,
    rpm: int | None,
    tpm: int | None,
    expires: datetime | None,
    as_json: bool,
) -> None:
    """Make a key, and show it this once."""
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(
            f"{name!r} is no name for a key: it takes up to 64 letters, digits and any of . _ @ -",
            suggestions=("Name whoever uses it: ada, prometheus, vscode@laptop.",),
        )
    secret = new_secret()
    key = Key(
        name=name,
        sha256=digest(secret),
        scopes=frozenset(scopes or ("inference",)),
        priority=priority,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        created=datetime.now(UTC).replace(microsecond=0),
        expires=expires and expires.replace(microsecond=0),
    )
    first = key_file.read(file) is None
    key_file.change(file, lambda known: [*_without(known, name, wanted=False), key])
    if as_json:
        click.echo(json.dumps({"key": secret, **_told(key)}, indent=2))
        return
    click.echo(secret)
    click.echo(f"This is the key of {name}, for {_scopes(key)}. It is shown only now: {file} has its hash.", err=True)
    if first:
        click.echo("From now on every request needs a key, also on this machine.", err=True)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def list_keys(file: Path, as_json: bool) -> None:
    """List the keys that are known, without the keys themselves."""
    known = key_file.read(file)
    if as_json:
        click.echo(json.dumps([_told(key) for key in known or ()], indent=2))
    elif known:
        _show(known)
    elif known is None:
        click.echo("There are no keys, so nobody needs one. Make one: jackfield keys create NAME")
    else:
        click.echo(f"There are no keys, so nobody gets in. Make one, or remove {file} if nobody is to need one.")


@keys.command()
@click.argument("name")
@click.pass_obj
def revoke(file: Path, name: str) -> None:
    """Make a key useless, within a second."""
    key_file.change(file, lambda known: _without(known, name, wanted=True))
    click.echo(f"The key of {name} is revoked.")


def _without(known: Sequence[Key], name: str, *, wanted: bool) -> list[Key]:
    """The others.

    Raises:
        ConfigurationError: it is ``wanted`` and not there, or the other way round.
    """
    others = [key for key in known if key.name != name]
    if not wanted and len(others) < len(known):
        raise ConfigurationError(
            f"There is a key called {name!r} already.",
            suggestions=(f"Revoke it first: jackfield keys revoke {name}.", "Choose another name."),
        )
    if wanted and len(others) == len(known):
        near = nearest(name, [key.name for key in known])
        raise ConfigurationError(
            f"There is no key called {name!r}.",
            suggestions=(f"Did you mean {near!r}?" if near else "See jackfield keys list.",),
        )
    return others


def _told(key: Key) -> dict[str, Any]:
    """All but the hash."""
    told = key.model_dump(mode="json", exclude={"sha256"})
    return {**told, "scopes": sorted(key.scopes), "expired": key.expired}


def _scopes(key: Key) -> str:
    return ", ".join(sorted(key.scopes))


def _show(known: Sequence[Key]) -> None:
    table = Table("Name", "Scopes", "Priority", "Limits", "Created", "Expires")
    for key in known:
        limits = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        table.add_row(
            key.name,
            _scopes(key),
            key.priority,
            "\n".join(f"{limit} {what}/min" for what, limit in limits.items() if limit),
            f"{key.created:%Y-%m-%d}" if key.created else "",
            Text(f"{key.expires:%Y-%m-%d %H:%M}", "red" if key.expired else "") if key.expires else "never",
        )
    Console(highlight=False).print(table)
