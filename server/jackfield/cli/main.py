"""The command itself and its sub-commands."""

import contextlib
import sys
from typing import Any

import click

from jackfield import __version__
from jackfield import settings as configuration
from jackfield.cli.complaint import complain
from jackfield.cli.config import config
from jackfield.cli.doctor import doctor
from jackfield.cli.garbage import leave_to_the_system
from jackfield.cli.keys import keys
from jackfield.cli.models import models
from jackfield.cli.monitoring import monitoring
from jackfield.cli.plugins import plugins
from jackfield.cli.serve import serve
from jackfield.cli.service import service
from jackfield.errors import JackfieldError


class _Group(click.Group):
    """Shows errors that a user can mend as a message and what to do, without a traceback.

    Sub-commands that plugins bring are looked for only when nobody else has the name, since importing takes its time.
    """

    _asked = False

    def invoke(self, context: click.Context) -> Any:
        """Run the sub-command."""
        leave_to_the_system()
        try:
            return super().invoke(context)
        except JackfieldError as error:
            complain(error)
            sys.exit(error.exit_status)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The sub-command of that name."""
        return (
            super().get_command(context, name) or (self._ask_plugins() and super().get_command(context, name)) or None
        )

    def list_commands(self, context: click.Context) -> list[str]:
        """All names, for --help, which is there for those too whose settings are wrong."""
        with contextlib.suppress(JackfieldError):
            self._ask_plugins()
        return super().list_commands(context)

    def _ask_plugins(self) -> bool:
        """Let plugins add theirs; False if they have already."""
        if self._asked:
            return False
        from jackfield.hooks.discovery import discover_commands  # noqa: PLC0415 - see above

        settings = configuration.read({}).settings
        self._asked = True
        discover_commands(settings, self)
        return True


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jackfield")
def main() -> None:
    """An OpenAI-compatible model server for your own machine."""


main.add_command(serve)
main.add_command(doctor)
main.add_command(models)
main.add_command(plugins)
main.add_command(config)
main.add_command(service)
main.add_command(monitoring)
main.add_command(keys)
