"""The command ``jackfield``: one sub-command a file."""

from jackfield.cli.main import main

__all__ = ["main"]
