"""Nothing leaves the machine: a server at work opens no connection, asks for no name and starts no foreign program."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from serving import Server, serve

WATCH = """
import json, os, sys

SOCKETS = {"connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo"}
PROGRAMS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system")

def watch(event, arguments):
    if event in PROGRAMS or event.startswith("socket.") and event[7:] in SOCKETS:
        with open(os.environ["WATCHED"], "a") as file:
            file.write(json.dumps([event, repr(arguments)]) + "\\n")

with open(os.environ["WATCHED"], "w") as file:
    file.write(f"{os.getpid()}\\n")
sys.addaudithook(watch)
"""
"""Python tells a hook of every connection, every name that is looked up and every program that is started."""

LOOK_SECONDS = 0.02
LISTENS, UDP = "0A", ("udp", "udp6")


@contextmanager
def watching(folder: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """What the environment of a Python process has to have, and what that process then does; none has to last long.

    Python's own connections are told by itself, those of compiled code by the kernel.
    """
    (folder / "sitecustomize.py").write_text(WATCH)
    file = folder / "watched"
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            with suppress(OSError, IndexError):
                process = file.read_text().split("\n")[:-1][0]
                done.extend(one for one in opened(process) if one not in done)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield {"PYTHONPATH": path, "WATCHED": str(file)}, done
    finally:
        over.set()
        thread.join()
        done.extend(file.read_text().splitlines()[1:])


def opened(process: str) -> list[str]:
    """Sockets of a process that it has opened itself, as the kernel has them (proc(5)), to wherever."""
    rows = [(kind, line.split()) for kind in ("tcp", "tcp6", *UDP) for line in _table(process, kind)]
    inodes = _inodes(process)
    own = [(kind, *row[1:4]) for kind, row in rows if row[9] in inodes]
    served = {_port(local) for _, local, _, state in own if state == LISTENS}
    return [
        f"{kind} {local} {far}"
        for kind, local, far, state in own
        if kind in UDP or (state != LISTENS and _port(local) not in served)
    ]


def _inodes(process: str) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


def _table(process: str, kind: str) -> list[str]:
    file = Path(f"/proc/{process}/net/{kind}")
    return file.read_text().splitlines()[1:] if file.exists() else []


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def work(server: Server) -> None:
    """Of every kind."""
    with OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        hi = [{"role": "user", "content": "Hi"}]
        client.chat.completions.create(model=server.model, messages=hi, max_tokens=4)  # type: ignore[arg-type]
        client.embeddings.create(model=server.model, input="Hi")
        client.responses.create(model=server.model, input="Hi", max_output_tokens=16, store=True)
    for where in ("/metrics", "/v1/models", "/v1/plugins", "/ready"):
        assert httpx2.get(server.url + where).status_code == 200


def test_a_server_at_work_speaks_to_nobody(starter: Path, tmp_path: Path) -> None:
    everything = {"JACKFIELD_PLUGINS": ""}
    with watching(tmp_path) as (environment, done), serve("starter", **everything, **environment) as server:
        work(server)
    # A model's templates are rendered by a program of our own, which tests/system watches too.
    assert [one for one in done if "template_program.py" not in one] == []


CONNECT = "import socket; socket.create_connection(('127.0.0.1', {port}))"
LOOK_UP = "import socket; socket.gethostbyname('localhost')"
SEND = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))"
START = "import subprocess; subprocess.run(['true'])"
UNSEEN = """
import ctypes, socket, struct, time
c, one = ctypes.CDLL(None), socket.socket()
there = struct.pack("=HH4s8x", socket.AF_INET, socket.htons({port}), socket.inet_aton("127.0.0.1"))
assert c.connect(one.fileno(), there, len(there)) == 0
time.sleep(0.5)
"""
"""Compiled code does so, of which Python knows nothing."""


@pytest.mark.parametrize(
    "script", [CONNECT, LOOK_UP, SEND, START, UNSEEN], ids=["connect", "name", "udp", "program", "C"]
)
def test_nothing_escapes_the_watch(script: str, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, watching(tmp_path) as (environment, done):
        command = [sys.executable, "-c", script.format(port=listener.getsockname()[1])]
        subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=60)
    assert done


def test_who_is_spoken_to_need_not_speak(tmp_path: Path) -> None:
    script = "import socket, time; a = socket.create_server(('127.0.0.1', 0)); print(a.getsockname()[1], flush=True); "
    script += "b, _ = a.accept(); b.recv(1); time.sleep(0.2)"
    with watching(tmp_path) as (environment, done):
        whole = {**os.environ, **environment}
        with subprocess.Popen([sys.executable, "-c", script], env=whole, stdout=subprocess.PIPE) as process:
            assert process.stdout
            with closing(socket.create_connection(("127.0.0.1", int(process.stdout.readline())))) as connection:
                connection.sendall(b"a")
                process.wait(60)
    assert done == []
