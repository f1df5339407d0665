"""The plugin between `startup` and `shutdown`, and what it has written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jackfield.hooks import LogRecord, RequestInfo
from jackfield_logging import Plugin, Settings

REQUEST = RequestInfo("req_1790000000_0badcafe", "/chat/completions", "starter", stream=True, received=1790000000.0)


@contextmanager
def started(**settings: Any) -> Iterator[Plugin]:
    """The plugin at work; all lines are written when the context ends."""
    plugin = Plugin()
    plugin.startup(Settings.model_validate({"server_log": False, **settings}))
    try:
        yield plugin
    finally:
        plugin.shutdown()


def record(kind: Any, request: RequestInfo = REQUEST, **data: Any) -> LogRecord:
    """A station at a known time."""
    return LogRecord(kind, request, data, time=1790000001.25)


def lines(file: Path) -> list[dict[str, Any]]:
    """All lines of a file, which are JSON; NaN and the like are not."""
    return [json.loads(line, parse_constant=_refuse) for line in file.read_text("ascii").split("\n")[:-1]]


def line(file: Path) -> dict[str, Any]:
    """The only one."""
    [only] = lines(file)
    return only


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
