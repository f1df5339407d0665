"""A clock for what takes minutes to happen: it goes as the real one does, and can be put forward."""

import time
from types import ModuleType
from typing import Any

import pytest


class Clock:
    """Stands in the place of the module ``time``."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """Seconds before the real one."""

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def clock_of(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Clock:
    """The one that these modules go by from now on."""
    clock = Clock()
    for module in modules:
        monkeypatch.setattr(module, "time", clock)
    return clock
