"""The servers that are measured: how each is started, asked and stopped."""

import asyncio
import atexit
import json
import os
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from client import FAILURES, Target, get

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent
READY_WITHIN = 300
STOPPED_WITHIN = 20
"""Jackfield writes its prefix cache to disk first, where it is told to."""
ALIVE: set[int] = set()


class PeerError(Exception):
    """A server that could not be started or reached."""


@dataclass(frozen=True)
class Peer:
    """One server: the command that starts it, with ``{model}`` and ``{port}`` to be filled in, and its ways.

    Without a command it is one that runs already, at ``url``.
    """

    name: str
    command: tuple[str, ...] = ()
    url: str = ""
    ready: str = "/health"
    model: str = "{model}"
    env: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every request to this server carries."""

    def filled(self, model: Path, port: int) -> list[str]:
        """The command line for this model and port."""
        return [part.replace("{model}", str(model)).replace("{port}", str(port)) for part in self.command]


def group_of_two(parallelism: str, ring: int) -> Peer:
    """Jackfield as two processes of this machine, which share its cores and say what a group costs.

    They use this port and the next one among themselves. `mlx.launch` would use up another core.
    """
    hosts = json.dumps([[f"{HOST}:{ring}"], [f"{HOST}:{ring + 1}"]])
    serve = f"{BIN}/jackfield serve --model '{{model}}' --host {HOST} --port {{port}} --parallelism {parallelism}"
    both = f"MLX_RANK=1 {serve} & MLX_RANK=0 exec {serve}"
    return Peer(
        f"{parallelism}-2",
        ("sh", "-c", f"export MLX_HOSTFILE=$(mktemp); echo '{hosts}' >$MLX_HOSTFILE; {both}"),
        ready="/ready",
        model="",
        extra={"ignore_eos": True},
    )


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "jackfield",
            (f"{BIN}/jackfield", "serve", "--model", "{model}", "--host", HOST, "--port", "{port}"),
            ready="/ready",
            model="",
            # Otherwise a run would find the prompts of the one before on disk.
            env={"JACKFIELD_PREFIX_CACHE_DISK_BYTES": "0"},
            extra={"ignore_eos": True},
        ),
        # Just what its documentation says; `default_model` is its name for the model it was started with.
        Peer(
            "mlx_lm",
            (sys.executable, "-m", "mlx_lm", "server", "--model", "{model}", "--host", HOST, "--port", "{port}"),
            model="default_model",
        ),
        group_of_two("tensor", 32323),
        group_of_two("pipeline", 32325),
    )
}


def parse(text: str) -> Peer:
    """A peer from its name, or from ``NAME=URL`` for a server that runs already."""
    name, _, url = text.partition("=")
    if url:
        return Peer(name, url=url, ready="/v1/models", model="")
    if name not in PEERS:
        raise ValueError(f"unknown server {name!r}: it is one of {', '.join(PEERS)}, or NAME=URL")
    return PEERS[name]


@dataclass
class Running:
    """A server that answers."""

    peer: Peer
    target: Target
    command: str = ""
    process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        """The server's name, as given to --servers."""
        return self.peer.name

    @property
    def ended(self) -> str:
        """How the server ended; empty as long as it runs."""
        status = self.process.returncode if self.process else None
        return "" if status is None else f" (the server ended with status {status})"

    def cpu_seconds(self) -> float:
        """Processor time the server has used so far; 0 where the system does not tell."""
        try:
            fields = (
                Path(f"/proc/{self.process.pid if self.process else 0}/stat").read_text().rpartition(")")[2].split()
            )
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running(peer: Peer, model: Path, limit: float) -> AsyncIterator[Running]:
    """Start a server, wait until it answers, and stop it afterwards, whatever happens."""
    if peer.url:
        parts = urlsplit(peer.url)
        target = Target(parts.hostname or HOST, parts.port or 80, extra=peer.extra, timeout=limit)
        yield await identified(Running(peer, target, peer.url), model)
        return
    port = free_port()
    target = Target(HOST, port, extra=peer.extra, timeout=limit)
    shown = shlex.join(peer.filled(Path(model.name), port)).replace(f"{BIN}/", "")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = await start(peer, peer.filled(model, port), log)
        try:
            server = Running(peer, target, shown, process)
            await until_ready(server, process, log)
            yield await identified(server, model)
        finally:
            await stop(process)


async def start(peer: Peer, command: list[str], log: IO[str]) -> asyncio.subprocess.Process:
    """Start a server in a process group of its own."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **peer.env},
            start_new_session=True,
        )
    except OSError as error:
        raise PeerError(f"{peer.name} could not be started: {error}") from None
    ALIVE.add(process.pid)
    return process


async def until_ready(server: Running, process: asyncio.subprocess.Process, log: IO[str]) -> None:
    """Wait for the server's first good answer."""
    try:
        async with asyncio.timeout(READY_WITHIN):
            while process.returncode is None:
                with suppress(*FAILURES):
                    await get(server.target, server.peer.ready)
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise PeerError(f"{server.name} did not answer within {READY_WITHIN} s\n{tail(log)}") from None
    raise PeerError(f"{server.name} ended at once, with status {process.returncode}\n{tail(log)}")


async def identified(server: Running, model: Path) -> Running:
    """The server with the name under which it knows its model: the peer's own, or else the first it lists."""
    name = server.peer.model.replace("{model}", str(model))
    try:
        name = name or json.loads(await get(server.target, "/v1/models"))["data"][0]["id"]
    except (*FAILURES, LookupError) as error:
        raise PeerError(f"{server.name} does not say which model it serves: {error}") from None
    return replace(server, target=replace(server.target, model=name))


async def stop(process: asyncio.subprocess.Process) -> None:
    """End a server and whatever it started: politely, then not."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        signal_group(process.pid, how)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOPPED_WITHIN)
            break
    ALIVE.discard(process.pid)


def signal_group(pid: int, how: signal.Signals) -> None:
    """Signal a process group that may have gone already."""
    with suppress(ProcessLookupError):
        os.killpg(pid, how)


@atexit.register
def kill_the_rest() -> None:
    """Leave no server behind, even when stopping them was itself interrupted."""
    for pid in ALIVE:
        signal_group(pid, signal.SIGKILL)


def tail(log: IO[str], lines: int = 15) -> str:
    """The last lines a server wrote."""
    log.seek(0)
    return "\n".join("  " + line for line in log.read().splitlines()[-lines:])


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port
