"""The program that renders chat templates, in a process of its own: they come with models, and nobody has read them.

One step of a template may take all memory, never end, or bring Python down, and no sandbox inside of Python prevents
all of that. So whatever goes wrong goes wrong here: `template_process` starts this file, kills it when time is up, and
the operating system keeps it from memory, files and programs. It needs nothing but Jinja, so it starts at once.

Requests come through the socket that is the standard input: a length, the seconds it may take, and the marshalled
template and variables; marshal knows plain values only. Answers go back as a kind, a length and a text in UTF-8.
"""

import codecs
import json
import marshal
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LATE_MODULES = ("html", "jinja2.constants", "jinja2.debug", "pprint", "textwrap", "unicodedata")
LATE_CODECS = ("ascii", "latin-1", "unicode-escape", "utf-16", "utf-32")
"""What Jinja and Python would otherwise load when a template needs it, and no file can be opened any more."""

REQUEST, ANSWER = struct.Struct("!Qd"), struct.Struct("!cQ")
READY, RENDERED, REFUSED, EXHAUSTED = b"+", b"=", b"?", b"!"
"""Kinds of answers. The first comes once, unasked; the last but one has the reason for a text."""

MEMORY, MEMORY_PER_BYTE = 512 << 20, 32
LENGTH, LENGTH_PER_BYTE = 16 << 20, 8
"""What a template may take, and write, in bytes and in characters: for itself, and for each byte of the request."""

REASON = 2000
"""Characters of a reason, which may quote a message."""


def memory_for(request: int) -> int:
    """The bytes of memory that may be taken for a request of so many bytes."""
    return MEMORY + MEMORY_PER_BYTE * request


def longest_for(request: int) -> int:
    """The characters that may be written for a request of so many bytes."""
    return LENGTH + LENGTH_PER_BYTE * request


class Generation(Extension):
    """``{% generation %}``: marks what the model writes, for training. Here it is nothing but its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """A call, as it is in transformers, so that variables set inside stay inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("contents"), [], [], body).set_lineno(line)

    def contents(self, caller: Callable[[], str]) -> str:
        """The block's text."""
        return caller()


class TemplateDict:
    """``dict`` without the class, which leads out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As in Python."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As in Python."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """``namespace`` without private attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # any name may be an attribute's, self too
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"{name!r} cannot be an attribute of a namespace: it begins with an underscore.")


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it, which is as transformers sets it up."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),  # noqa: A006
        "dict": TemplateDict(),
        "namespace": TemplateNamespace,
    }
    return made


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


@lru_cache(maxsize=4)
def compiled(template: str) -> Template:
    """Jinja's program for it."""
    return environment().from_string(template)


def answer(request: bytes) -> tuple[bytes, str]:
    """The kind of the answer, and its text."""
    try:
        template, variables = marshal.loads(request)  # noqa: S302 (it comes from the server)
        text = compiled(template).render(variables)
    except MemoryError:
        return EXHAUSTED, ""
    except Exception as error:
        return REFUSED, str(error)[:REASON]
    return (RENDERED, text) if len(text) <= longest_for(len(request)) else (EXHAUSTED, "")


def confine() -> None:
    """Give up what no template needs, for good: files, programs, and a place among those whom the system spares."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for module in LATE_MODULES:
        import_module(module)
    for codec in LATE_CODECS:
        codecs.lookup(codec)
    datetime.now().astimezone()  # reads the time zone
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        _limit(limit, 0, 0)


def _confine_to(seconds: float, memory: int) -> None:
    """Set the limits of one request. What a system does not hold to, `template_process` watches."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)
    _limit(resource.RLIMIT_AS, memory)


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    with suppress(OSError, ValueError):
        resource.setrlimit(which, (soft, resource.getrlimit(which)[1] if hard is None else hard))


def requests(connection: socket.socket) -> Iterator[bytes]:
    """What the server asks for, until it is gone; each comes with the limits set that it has."""
    with connection.makefile("rb") as stream:
        while header := stream.read(REQUEST.size):
            length, seconds = REQUEST.unpack(header)
            _confine_to(seconds, memory_for(length))
            yield stream.read(length)


def main() -> None:
    """Answer requests one after another."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of service managers; the server gets it too, and ends this in time
    confine()
    with socket.socket(fileno=0) as connection:
        connection.sendall(ANSWER.pack(READY, 0))
        for request in requests(connection):
            kind, text = answer(request)
            body = text.encode("utf-8", "surrogatepass")
            connection.sendall(ANSWER.pack(kind, len(body)) + body)


if __name__ == "__main__":
    main()
