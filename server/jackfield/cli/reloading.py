"""Settings that are read again while the server runs."""

import logging
from collections.abc import Callable
from dataclasses import replace

from jackfield.errors import JackfieldError
from jackfield.settings import Configuration

logger = logging.getLogger(__name__)

AT_ONCE = ("log_level",)
"""Settings that can change while the server runs."""


def set_log_level(level: str) -> None:
    """For everything that logs; each request is a line of its own at ``debug`` only."""
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if level == "debug" else logging.WARNING)


class Reloader:
    """Puts into force what can change, and tells of the rest.

    Args:
        current: the configuration that the server runs with.
        read: reads it again.
    """

    def __init__(self, current: Configuration, read: Callable[[], Configuration]) -> None:
        self._current = current
        self._read = read
        self.others: list[Callable[[], None]] = []
        """What else is read again; a `JackfieldError` says that it stays as it was, and why."""

    def reload(self) -> None:
        """Read the settings; when they are wrong, everything stays as it is."""
        try:
            found = self._read()
        except JackfieldError as error:
            logger.error("The settings stay as they are. %s %s", error.message, " ".join(error.suggestions))
            return
        changed = self._current.differences(found)
        if "log_level" in changed:
            set_log_level(found.settings.log_level)
        new = {name: getattr(found.settings, name) for name in changed if name in AT_ONCE}
        # What needs a restart is told again and again until there is one.
        self._current = replace(self._current, settings=self._current.settings.model_copy(update=new))
        for again in self.others:
            self._attempt(again)
        self._tell(new, [name for name in changed if name not in AT_ONCE])

    def _attempt(self, again: Callable[[], None]) -> None:
        try:
            again()
        except JackfieldError as error:
            logger.error("Something stays as it was. %s %s", error.message, " ".join(error.suggestions))

    def _tell(self, new: dict[str, object], waiting: list[str]) -> None:
        told = ", ".join(f"{name} is {value}" for name, value in new.items()) or "nothing has changed at once"
        logger.log(self._visible, "The settings have been read again: %s.", told)
        if waiting:
            logger.warning("These take a restart: %s.", ", ".join(waiting))

    @property
    def _visible(self) -> int:
        return max(logging.INFO, logging.getLogger().level)
