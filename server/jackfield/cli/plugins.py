"""``jackfield plugins``: what is plugged in, and new plugins from a template."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from string import Template

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jackfield import __version__
from jackfield import settings as configuration
from jackfield.errors import ConfigurationError
from jackfield.hooks.specs import PROJECT
from jackfield.protocol.plugins import PluginList, PluginReport

EXAMPLES = """\b
Examples:
  jackfield plugins                            what is installed, and how it is set
  jackfield plugins --config jackfield.toml --json
  jackfield plugins new my-plugin              a working plugin with tests, in ./jackfield-my-plugin
"""

NEW_EXAMPLES = """\b
Examples:
  jackfield plugins new my-plugin
  jackfield plugins new my-plugin --directory ~/src
"""

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 40
LONGEST_SETTING = 100
"""Characters."""

FILES = {
    "pyproject.toml.tmpl": "pyproject.toml",
    "README.md.tmpl": "README.md",
    "plugin.py.tmpl": "{module}/__init__.py",
    "test_plugin.py.tmpl": "tests/test_{module}.py",
}
"""Templates, and where they go; in the texts, string.Template's placeholders stand for names."""

STYLES = {"active": "green", "failed": "red", "disabled": "yellow"}


@click.group(epilog=EXAMPLES, invoke_without_command=True)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file with settings, as for serve."
)
@click.option("--json", "as_json", is_flag=True, help="For programs; the same as GET /v1/plugins.")
@click.pass_context
def plugins(context: click.Context, config: Path | None, as_json: bool) -> None:
    """List the plugins: name, version, state, hooks, settings (secrets masked) and errors.

    They are loaded and configured as serve would do it, but not started.
    """
    if context.invoked_subcommand:
        return
    # Not at the top: plugins are of no concern to those who make one.
    from jackfield.hooks.discovery import discover  # noqa: PLC0415

    hooks = discover(configuration.read({}, config).settings)
    reports = [PluginReport.model_validate(report) for report in hooks.reports()]
    if as_json:
        click.echo(json.dumps(json.loads(PluginList(data=reports).to_json()), indent=2))
    else:
        _show(reports)


def _show(reports: Sequence[PluginReport]) -> None:
    if not reports:
        click.echo("There are no plugins. Install one, or begin your own: jackfield plugins new NAME")
        return
    # Where the terminal is narrow, settings are what is wrapped.
    table = Table(Column("Plugin", no_wrap=True), Column("Hooks", no_wrap=True), "Settings", show_lines=True)
    for one in reports:
        table.add_row(_name(one), "\n".join(one.hooks), _settings(one))
    console = Console(highlight=False)
    console.print(table)
    for one in reports:
        for error in one.errors:
            console.print(Text(f"{one.name}: {error}", "red"), soft_wrap=True)


def _name(report: PluginReport) -> Text:
    version = f" {report.version}" if report.version else ""
    return Text.assemble((report.name, "bold"), version, "\n", (report.state, STYLES[report.state]))


def _settings(report: PluginReport) -> Text:
    """One a line, and not all of long ones, which --json has."""
    lines = (f"{name} = {json.dumps(value)}" for name, value in report.settings.items())
    return Text(
        "\n".join(line if len(line) <= LONGEST_SETTING else f"{line[: LONGEST_SETTING - 1]}…" for line in lines)
    )


@plugins.command(epilog=NEW_EXAMPLES)
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to put it.  [default: here]",
)
def new(name: str, directory: Path) -> None:
    """Write a working plugin with tests, ready to be changed."""
    _check(name)
    folder = directory / f"jackfield-{name}"
    try:
        written = _write(name, folder)
    except FileExistsError:
        raise ConfigurationError(
            f"{folder} is there already.", suggestions=("Choose another name, or another --directory.",)
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written: {error.strerror}.", suggestions=("Choose another --directory.",)
        ) from error
    click.echo(f"Made {folder}:")
    for file in written:
        click.echo(f"  {file}")
    click.echo(
        f"\nNext:\n  cd {folder}\n  pip install -e '.[test]'\n  pytest\n"
        f"  jackfield serve      then look at http://127.0.0.1:8080/{name} and /v1/plugins"
    )


def _check(name: str) -> None:
    """Refuse names that cannot be a distribution's, a table's in TOML and, with underscores, a module's.

    Raises:
        ConfigurationError: it is such a name, or a plugin has it.
    """
    if name.startswith("jackfield-"):
        raise ConfigurationError(
            f"{name!r} need not say jackfield: that is added.",
            suggestions=(f"jackfield plugins new {name.removeprefix('jackfield-') or 'NAME'}",),
        )
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        proposal = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:LONGEST].rstrip("-")
        raise ConfigurationError(
            f"{name!r} is no name for a plugin: it takes small letters and digits, in words joined by hyphens, "
            f"begins with a letter, and has no more than {LONGEST} characters.",
            suggestions=(f"jackfield plugins new {proposal or 'my-plugin'}",),
        )
    if name in entry_points(group=PROJECT).names:
        raise ConfigurationError(
            f"There is a plugin {name!r} already.", suggestions=("Choose another name.", "See jackfield plugins.")
        )


def _write(name: str, folder: Path) -> list[Path]:
    """The files of a new plugin, relative to its folder.

    Raises:
        FileExistsError: the folder is there.
        OSError: it cannot be written.
    """
    module = f"jackfield_{name.replace('-', '_')}"
    words = {"name": name, "module": module, "distribution": f"jackfield-{name}", "version": __version__}
    folder.mkdir(parents=True)
    texts = {Path(path.format(module=module)): _fill(template, words) for template, path in FILES.items()}
    texts[Path(module, "py.typed")] = ""
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    return sorted(texts)


def _fill(template: str, words: Mapping[str, str]) -> str:
    return Template((files("jackfield") / "templates" / "plugin" / template).read_text("utf-8")).substitute(words)
