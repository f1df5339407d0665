"""The command itself and its sub-commands."""

import sys
from typing import Any

import click

from jackfield import __version__
from jackfield.cli.doctor import doctor
from jackfield.cli.serve import serve
from jackfield.errors import JackfieldError


class _Group(click.Group):
    """Shows errors that a user can mend as a message and what to do, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(context)
        except JackfieldError as error:
            click.echo(f"jackfield: {error.message}", err=True)
            for suggestion in error.suggestions:
                click.echo(f"  - {suggestion}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jackfield")
def main() -> None:
    """An OpenAI-compatible model server for your own machine."""


main.add_command(serve)
main.add_command(doctor)
