"""Open MPI starts all ranks together and ends all together; what groups answer under it is in test_answers.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import openai

from groups import (
    MPI_LIBRARY,
    Group,
    answer,
    children,
    environment,
    free_ports,
    mpi_group,
    ready,
    runs,
    streaming,
    wait_until,
)
from jackfield.group.keeper import AGAIN
from serving import DEFAULTS


def keepers(mpirun: int) -> list[int]:
    """What it has started, by rank."""
    ranks = {rank: pid for pid in children(mpirun) for rank in range(9) if of_rank(pid, rank)}
    return [ranks[rank] for rank in sorted(ranks)]


def of_rank(pid: int, rank: int) -> bool:
    return f"OMPI_COMM_WORLD_RANK={rank}\0".encode() in environment(pid)


def worker(serving: Group, rank: int) -> int:
    return children(keepers(serving.ranks[0].process.pid)[rank])[0]


def test_a_follower_is_killed(model: Path) -> None:
    """Requests end with an error that says why; then all end, with a status that asks for all to be started anew."""
    with mpi_group(model, 3) as serving:
        before = answer(serving.client)
        workers = [worker(serving, rank) for rank in range(3)]
        stream = streaming(serving)
        os.kill(workers[2], signal.SIGKILL)
        stream.join(60)
        assert "rank 2 is gone" in str(stream.error)
        assert "rank 2 is gone" in ready(serving.url)[1]
        assert serving.ranks[0].process.wait(60) == AGAIN
        wait_until(lambda: not any(map(runs, workers)))
    with mpi_group(model, 3) as serving:
        assert answer(serving.client) == before


def test_the_leader_is_killed(model: Path) -> None:
    with mpi_group(model, 2) as serving:
        stream = streaming(serving)
        workers = [worker(serving, rank) for rank in range(2)]
        os.kill(workers[0], signal.SIGKILL)
        stream.join(60)
        assert serving.ranks[0].process.wait(60) == AGAIN
        wait_until(lambda: not any(map(runs, workers)))


def test_it_ends_when_its_leader_is_told_to(model: Path) -> None:
    with mpi_group(model, 2, JACKFIELD_DRAIN_SECONDS="3") as serving:
        stream = streaming(serving)
        os.kill(keepers(serving.ranks[0].process.pid)[0], signal.SIGTERM)
        assert serving.ranks[0].process.wait(60) == 0
        stream.join(60)


def test_mlx_launch(model: Path) -> None:
    """As users start it."""
    (port,) = free_ports(1)
    programs = Path(sys.executable).parent
    launch = [programs / "mlx.launch", "--backend", "mpi", "-n", "2", "--mpi-arg=--allow-run-as-root", "--"]
    process = subprocess.Popen(
        [*launch, sys.executable, "-m", "jackfield", "serve", "--model", str(model), "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **DEFAULTS, "PATH": f"{programs}:{os.environ['PATH']}"},
    )
    url = f"http://127.0.0.1:{port}"
    with process, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        wait_until(lambda: ready(url)[0] == 200)
        assert answer(client)
        (mpirun,) = children(process.pid)
        os.kill(keepers(mpirun)[0], signal.SIGTERM)
        assert process.wait(60) == 0


def test_without_its_library(model: Path) -> None:
    """MLX looks for it by a name that only packages for developers have on Debian."""
    assert MPI_LIBRARY.exists()
    mpirun = [Path(sys.executable).with_name("mpirun"), "--allow-run-as-root", "-n", "2"]
    ended = subprocess.run(
        [*mpirun, "--", sys.executable, "-m", "jackfield", "serve", "--model", str(model)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **DEFAULTS, "MLX_MPI_LIBNAME": "/nowhere/libmpi.so.40"},
    )
    assert ended.returncode == 1
    assert "was started for mpi, which MLX does not have here" in ended.stderr
    assert "MLX_MPI_LIBNAME=" in ended.stderr
