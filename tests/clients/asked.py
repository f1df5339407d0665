"""What a server was asked, as its log tells it."""

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2

LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/1\.1" (?P<status>\d+)')
SECONDS = 30


@dataclass(frozen=True)
class Asked:
    """A request, and how it was answered."""

    method: str
    path: str
    status: int


class Ledger:
    """The requests that come from now on."""

    def __init__(self, url: str, lines: Sequence[str]) -> None:
        """``lines`` are those of the server's log, and become more."""
        self._url = url
        self._lines = lines
        self._start = self._now()

    def asked(self) -> list[Asked]:
        """All that have been answered until now, in order."""
        found = filter(None, map(LINE.search, self._lines[self._start : self._now()]))
        return [Asked(one["method"], one["path"], int(one["status"])) for one in found if "/health" not in one["path"]]

    def _now(self) -> int:
        """The number of lines about what was asked until now: those before a request of our own."""
        mark = f"/health?{uuid.uuid4()}"
        httpx2.get(f"{self._url}{mark}").raise_for_status()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for number, line in enumerate(self._lines):
                if mark in line:
                    return number
            time.sleep(0.01)
        raise AssertionError("the server's log does not tell of requests")
