"""A real server in a process of its own, as users run it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

START_SECONDS = 120
DEFAULTS = {
    "PYTHONWARNINGS": "error::ResourceWarning",
    # Otherwise what one test sends would be a prompt seen before in another one.
    "JACKFIELD_PREFIX_CACHE_DISK_BYTES": "0",
    # Where tests share the cores, threads of a BLAS wait for each other: a token takes two to three times as long.
    "OMP_NUM_THREADS": "1",
    # And what is installed beside Jackfield has tests of its own.
    "JACKFIELD_PLUGINS": "none",
    # And whoever runs the tests may have settings of their own.
    "JACKFIELD_CONFIG": os.devnull,
}


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    model: str
    log: list[str]

    @property
    def api(self) -> str:
        """What clients call base URL."""
        return f"{self.url}/v1"


@contextmanager
def serve(
    model: Path | str, *flags: str, launcher: Sequence[str] = (), measured: bool = False, **environment: str
) -> Iterator[Server]:
    """Run ``jackfield serve`` on a free port until the context ends; what it stores ends with it.

    Args:
        model: a name or a folder.
        flags: of the command.
        launcher: a command that is given the server's, and becomes it.
        measured: whether its coverage is, if that of the tests is. It takes a third more time, and nearly all lines
            of a server are run in the tests' own process, too.
        environment: more variables.
    """
    log: list[str] = []
    if not measured:
        environment = {"COVERAGE_PROCESS_CONFIG": "", **environment}
    with tempfile.TemporaryDirectory(prefix="jackfield-data-") as data:
        process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "jackfield", "serve", "--model", str(model), "--port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **DEFAULTS, "JACKFIELD_DATA_DIR": data, **environment},
        )
        try:
            yield _wait_until_serving(process, log)
        finally:
            stop(process)


serve_measured = partial(serve, measured=True)
"""For tests of what only a process of its own does."""


def stop(process: subprocess.Popen[str]) -> None:
    """End the server as ``systemctl stop`` would."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    finally:
        if process.stderr:
            process.stderr.close()


def _wait_until_serving(process: subprocess.Popen[str], log: list[str]) -> Server:
    assert process.stderr is not None
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"Serving (\S+) on (http://\S+)/v1", line):
                threading.Thread(target=_follow, args=(process, log), daemon=True).start()
                return Server(process, found[2], found[1], log)
    finally:
        watchdog.cancel()
    raise AssertionError("the server did not start:\n" + "".join(log))


def _follow(process: subprocess.Popen[str], log: list[str]) -> None:
    with contextlib.suppress(ValueError):  # closed while reading, at the end
        log.extend(process.stderr or ())
