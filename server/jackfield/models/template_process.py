"""Chat templates are rendered in a process that may be killed: see `template_program`, which is what it runs."""

import marshal
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from threading import Lock
from typing import Any

from jackfield.errors import ModelLoadError
from jackfield.models import template_program
from jackfield.models.template_program import (
    ANSWER,
    EXHAUSTED,
    READY,
    REFUSED,
    RENDERED,
    REQUEST,
    longest_for,
    memory_for,
)

START_SECONDS = 60.0
"""It takes a tenth of a second on a machine that has nothing else to do."""

INHERITED = ("TZ", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
"""Variables of the environment that a template's process sees. Others may be secrets, such as keys."""

WATCHES_MEMORY = sys.platform == "darwin"
"""Whether the system has no limit of memory that it holds processes to."""

WATCH_SECONDS = 0.1

_BYTES_OF_CHARACTER = 4


class TemplateRefusedError(Exception):
    """A template fails, or says that it cannot render this."""


class TemplateExhaustedError(Exception):
    """A template has taken all its time or memory, or has brought its process down."""


class TemplateProcess:
    """Renders the templates of one model, one at a time; it is started when it is needed, and again when it was killed.

    It ends when nobody refers to it any more.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: _Child | None = None

    def render(self, template: str, variables: Mapping[str, Any], seconds: float) -> str:
        """What ``template`` makes of ``variables``, which are of the types that JSON has.

        Raises:
            TemplateRefusedError, TemplateExhaustedError: it does not.
            ValueError: the variables are nested too deeply, or not plain.
            ModelLoadError: the process does not start.
        """
        request = marshal.dumps((template, dict(variables)))
        if not self._lock.acquire(timeout=seconds):
            raise TemplateExhaustedError
        try:
            kind, text = self._ask(request, seconds)
        finally:
            self._lock.release()
        if kind == REFUSED:
            raise TemplateRefusedError(text)
        return text

    def _ask(self, request: bytes, seconds: float) -> tuple[bytes, str]:
        if self._child is None or self._child.has_ended():
            self._child = _Child()
        kind = EXHAUSTED
        try:
            kind, text = self._child.ask(request, seconds)
        except (EOFError, OSError, UnicodeDecodeError) as error:
            raise TemplateExhaustedError from error
        finally:
            if kind not in (
                RENDERED,
                REFUSED,
            ):  # it may still be at this request, and would answer the next one with it
                self._end()
        if kind not in (RENDERED, REFUSED):
            raise TemplateExhaustedError
        return kind, text

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None


class _Child:
    """One process, and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs)
        except OSError as error:
            self._connection.close()
            raise _does_not_start(str(error)) from error
        self.end = weakref.finalize(self, _end, self._process, self._connection)
        self._memory = memory_for(0)
        try:
            kind, _ = self._answer(0, time.monotonic() + START_SECONDS)
        except (EOFError, OSError) as error:
            self.end()
            raise _does_not_start(f"it ended with {self._process.returncode}") from error
        assert kind == READY  # noqa: S101 (it says nothing else before it is asked)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: bytes, seconds: float) -> tuple[bytes, str]:
        deadline = time.monotonic() + seconds
        self._memory = memory_for(len(request))
        self._connection.settimeout(seconds)
        self._connection.sendall(REQUEST.pack(len(request), seconds) + request)
        return self._answer(_BYTES_OF_CHARACTER * longest_for(len(request)), deadline)

    def _answer(self, longest: int, deadline: float) -> tuple[bytes, str]:
        kind, length = ANSWER.unpack(self._read(ANSWER.size, deadline))
        if length > longest:
            raise EOFError
        return kind, self._read(length, deadline).decode("utf-8", "surrogatepass")

    def _read(self, length: int, deadline: float) -> bytearray:
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            count = self._receive(rest, deadline)
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def _receive(self, into: memoryview, deadline: float) -> int:
        while True:
            left = _left(deadline)
            self._connection.settimeout(min(left, WATCH_SECONDS) if WATCHES_MEMORY else left)
            try:
                return self._connection.recv_into(into)
            except TimeoutError:
                if WATCHES_MEMORY and resident(self._process.pid) > self._memory:
                    raise


def _left(deadline: float) -> float:
    """The seconds that are left, or an error."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _start(connection: socket.socket) -> subprocess.Popen[bytes]:
    """Run the program as a file, without what a site adds, and out of the reach of Ctrl-C."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-S", "-W", "ignore", template_program.__file__],
        stdin=connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))},
        cwd="/",
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


def resident(process: int) -> int:
    """The bytes of memory that a process has, or 0 if nobody says."""
    command = ["ps", "-o", "rss=", "-p", str(process)]
    try:
        said = subprocess.run(command, capture_output=True, check=False, timeout=1).stdout  # noqa: S603
        return 1024 * int(said)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _does_not_start(why: str) -> ModelLoadError:
    return ModelLoadError(
        f"The process that renders the model's chat template does not start: {why}.",
        suggestions=("Check how many processes, and how much memory, the server may have (ulimit -a).",),
    )
