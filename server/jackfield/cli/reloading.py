"""Settings that are read again while the server runs."""

import logging
from collections.abc import Callable
from dataclasses import replace

from jackfield.errors import JackfieldError
from jackfield.settings import Configuration, ModelSettings, Settings
from jackfield.settings.upstreams import stays_here

logger = logging.getLogger(__name__)

AT_ONCE = ("log_level",)
"""Settings that can change while the server runs."""

ROUTES = ("upstreams", "models")
"""So can these, as long as nothing about models changes but their routes."""


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
        self.reroute: Callable[[Settings], None] | None = None
        """Puts upstreams and routes into force, once there is a server."""
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
        routes = self._routes(found.settings, changed)
        in_force = [*AT_ONCE, *(routes if self._reroute(found.settings, routes) else ())]
        new = {name: getattr(found.settings, name) for name in changed if name in in_force}
        # What needs a restart is told again and again until there is one.
        self._current = replace(self._current, settings=self._current.settings.model_copy(update=new))
        for again in self.others:
            self._attempt(again)
        self._tell(new, [name for name in changed if name not in (*AT_ONCE, *routes)])

    def _routes(self, settings: Settings, changed: list[str]) -> list[str]:
        """Upstreams and routes, if they have changed and that takes no restart."""
        if self.reroute is None or _bones(settings) != _bones(self._current.settings):
            return []
        return [name for name in changed if name in ROUTES]

    def _reroute(self, settings: Settings, names: list[str]) -> bool:
        """Put these into force; tells whether they are."""
        if not names or (reroute := self.reroute) is None:
            return False
        routed = self._current.settings.model_copy(update={name: getattr(settings, name) for name in names})
        return self._attempt(lambda: reroute(routed))

    def _attempt(self, again: Callable[[], None]) -> bool:
        try:
            again()
        except JackfieldError as error:
            logger.error("Something stays as it was. %s %s", error.message, " ".join(error.suggestions))
            return False
        return True

    def _tell(self, new: dict[str, object], waiting: list[str]) -> None:
        parts = [f"{name} is {new[name]}" for name in new if name in AT_ONCE]
        # Not in full: there may be keys in them.
        parts += ["upstreams and routes are in force"] if any(name in new for name in ROUTES) else []
        told = ", ".join(parts) or "nothing has changed at once"
        logger.log(self._visible, "The settings have been read again: %s.", told)
        if waiting:
            logger.warning("These take a restart: %s.", ", ".join(waiting))

    @property
    def _visible(self) -> int:
        return max(logging.INFO, logging.getLogger().level)


def _bones(settings: Settings) -> dict[str, tuple[ModelSettings, bool]]:
    """All there is to models but the ways of their routes."""
    models = settings.models.items()
    return {name: (one.model_copy(update={"route": ()}), stays_here(one.route)) for name, one in models}
