"""Structured logs of what the server does with each request."""

from jackfield_logging.plugin import Plugin
from jackfield_logging.settings import Settings

__all__ = ["Plugin", "Settings"]
