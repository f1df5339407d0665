"""How commands tell of an error that a user can mend."""

import click

from jackfield.errors import JackfieldError


def complain(error: JackfieldError) -> None:
    """Say what is wrong and what to do, without a traceback."""
    click.echo(f"jackfield: {error.message}", err=True)
    for suggestion in error.suggestions:
        click.echo(f"  - {suggestion}", err=True)
