"""How much an event matters."""

from typing import Literal

Level = Literal["info", "warning", "error"]

_ORDER: dict[str, int] = {"info": 0, "warning": 1, "error": 2}


def reaches(level: str, minimum: Level) -> bool:
    """Whether an event of ``level`` matters at least as much as ``minimum``."""
    return _ORDER.get(level, 0) >= _ORDER[minimum]
