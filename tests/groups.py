"""Several processes that run one model together, as a launcher starts them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import openai

from serving import DEFAULTS

START_SECONDS = 90


@dataclass
class Rank:
    """One of the processes that a launcher has started."""

    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    @property
    def worker(self) -> int:
        """The process that does its work."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def follow(self) -> None:
        """Keep what it says."""
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):
            self.log.extend(self.process.stderr)

    def says(self, text: str) -> bool:
        """Whether it has said that."""
        return text in "".join(self.log)


@dataclass
class Group:
    """A group that serves."""

    ranks: list[Rank]
    url: str
    client: openai.OpenAI
    """One that does not try again by itself."""

    @property
    def log(self) -> str:
        """What all have said."""
        return "\n".join(f"--- rank {number}\n{''.join(rank.log)}" for number, rank in enumerate(self.ranks))

    def wait_until_ready(self) -> None:
        """It answers, or one of the processes has ended."""
        wait_until(lambda: self.ended or ready(self.url)[0] == 200, lambda: self.log)
        assert not self.ended, self.log

    @property
    def ended(self) -> bool:
        """Whether one of the processes that the launcher has started has ended."""
        return any(rank.process.poll() is not None for rank in self.ranks)


def ready(url: str) -> tuple[int, str]:
    """What ``/ready`` says; 0 if nobody is there."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(f"GET /ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = connection.makefile("rb").read().decode()
    except OSError:
        return 0, ""
    return (int(answer.split()[1]), answer) if answer else (0, "")


def wait_until(holds: Callable[[], bool], told: Callable[[], str] = lambda: "") -> None:
    """Wait for something that must come about."""
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come about\n{told()}")
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


@contextlib.contextmanager
def group(
    models: Path | Sequence[Path],
    size: int,
    *flags: str,
    hosts: Sequence[str] = (),
    launchers: Sequence[Sequence[str]] = (),
    **environment: str,
) -> Iterator[Group]:
    """Start ``size`` ranks as ``mlx.launch`` does, which uses up a core itself; waits until they serve.

    ``hosts`` are their addresses, ``launchers`` commands that become them, such as ``ip netns exec``. Each may have its
    own copy of the model.
    """
    with contextlib.ExitStack() as stack:
        started = start(models, size, *flags, hosts=hosts, launchers=launchers, **environment)
        ranks, url = stack.enter_context(started)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        serving = Group(ranks, url, stack.enter_context(client))
        serving.wait_until_ready()
        yield serving


@contextlib.contextmanager
def start(
    models: Path | Sequence[Path],
    size: int,
    *flags: str,
    hosts: Sequence[str] = (),
    launchers: Sequence[Sequence[str]] = (),
    own: Sequence[Sequence[str]] = (),
    **environment: str,
) -> Iterator[tuple[list[Rank], str]]:
    """The same without waiting, for those that will not serve; each may have flags of its ``own``."""
    folders = [models] * size if isinstance(models, Path) else models
    port, *ports = free_ports(size + 1)
    addresses = [f"{host}:{own}" for host, own in zip(hosts or ["127.0.0.1"] * size, ports, strict=True)]
    with tempfile.TemporaryDirectory(prefix="jackfield-group-") as data:
        hostfile = Path(data, "hosts.json")
        hostfile.write_text(json.dumps([[address] for address in addresses]))
        shared = {**os.environ, **DEFAULTS, "JACKFIELD_DATA_DIR": data, "MLX_HOSTFILE": str(hostfile), **environment}
        ranks = []
        try:
            for number, (folder, launcher) in enumerate(zip(folders, launchers or [()] * size, strict=True)):
                command = ["serve", "--model", str(folder), "--port", str(port), *flags, *(own[number] if own else ())]
                process = subprocess.Popen(
                    [*launcher, sys.executable, "-m", "jackfield", *command],
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**shared, "MLX_RANK": str(number)},
                )
                ranks.append(Rank(process))
                threading.Thread(target=ranks[-1].follow, daemon=True).start()
            yield ranks, f"http://127.0.0.1:{port}"
        finally:
            end(ranks)


MPI_LIBRARY = Path(sys.prefix, "lib", "libmpi.so.40")
"""Open MPI's, as its package on PyPI brings it."""


@contextlib.contextmanager
def mpi_group(model: Path, size: int, *flags: str, **environment: str) -> Iterator[Group]:
    """The same by Open MPI, which starts all ranks and ends all; the one process here is its ``mpirun``."""
    (port,) = free_ports(1)
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "--allow-run-as-root", "--bind-to", "none"]
    serve = [sys.executable, "-m", "jackfield", "serve", "--model", str(model), "--port", str(port), *flags]
    with tempfile.TemporaryDirectory(prefix="jackfield-group-") as data:
        process = subprocess.Popen(
            [*mpirun, "--map-by", "slot:OVERSUBSCRIBE", "-n", str(size), "--", *serve],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **DEFAULTS,
                "JACKFIELD_DATA_DIR": data,
                "MLX_MPI_LIBNAME": str(MPI_LIBRARY),
                **environment,
            },
        )
        launcher, url = Rank(process), f"http://127.0.0.1:{port}"
        threading.Thread(target=launcher.follow, daemon=True).start()
        try:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
                serving = Group([launcher], url, client)
                serving.wait_until_ready()
                yield serving
        finally:
            end([launcher])


def end(ranks: Sequence[Rank]) -> None:
    """As a launcher ends them: all are asked to."""
    for rank in ranks:
        rank.process.send_signal(signal.SIGTERM)
    try:
        for rank in ranks:
            rank.process.wait(60)
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
            if rank.process.stderr:
                rank.process.stderr.close()


# --- Their processes -----------------------------------------------------------------------------------------------


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """What a process has started."""
    return [int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()]


def environment(pid: int) -> bytes:
    """Of a process, as it was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes()


# --- Requests to them ----------------------------------------------------------------------------------------------


class Stream(threading.Thread):
    """A long answer, and how it ended."""

    def __init__(self, client: openai.OpenAI) -> None:
        super().__init__()
        self._client = client
        self.begun = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Read it to its end."""
        try:
            chunks = self._client.completions.create(
                model="group-model", prompt="The fox", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
            )
            for chunk in chunks:
                if chunk.choices[0].text:
                    self.begun.set()
        except openai.APIError as error:
            self.error = error


def streaming(serving: Group) -> Stream:
    """One that has begun."""
    stream = Stream(serving.client)
    stream.start()
    assert stream.begun.wait(60)
    return stream


def answer(client: openai.OpenAI) -> str:
    """A short one, the same each time."""
    answered = client.completions.create(model="group-model", prompt="The fox", max_tokens=8, temperature=0)
    return answered.choices[0].text
