"""Which place this process has in a group, by what its launcher put into the environment.

The variables are those that MLX's own backends read: see ``mlx.launch`` and "Distributed Communication" in MLX's
documentation. Nothing here imports MLX.
"""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from jackfield.errors import ConfigurationError

Backend = Literal["ring", "mpi", "nccl", "jaccl"]
"""Whose means processes reach each other by, as `mlx.core.distributed.init` has them."""

MPI = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))
"""Rank and size as Open MPI has them, and MPICH and Intel MPI."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One of ``size`` processes; number 0 leads the others."""

    number: int
    size: int
    backend: Backend = "ring"
    leader: str | None = None
    """An address of the leader's, where the launcher tells."""

    @property
    def leads(self) -> bool:
        """Whether it is the one that clients talk to."""
        return self.number == 0

    @property
    def returns(self) -> bool:
        """Whether a process may come back in its place: MPI has all of them start together, once."""
        return self.backend != "mpi"

    @property
    def sends(self) -> bool:
        """Whether it can send to one other process alone: MLX (0.32.4) cannot by NCCL, see its `nccl.cpp`."""
        return self.backend != "nccl"

    def __str__(self) -> str:
        return f"rank {self.number} of {self.size}"


def from_environment(environment: Mapping[str, str]) -> Rank | None:
    """This process's rank; None where it is alone.

    Raises:
        ConfigurationError: the variables contradict each other.
    """
    for rank, size in MPI:
        if rank in environment and size in environment:
            return _rank(environment, rank, int(environment[size]), "mpi")
    if "MLX_RANK" not in environment:
        return None
    if hosts := _listed(environment.get("MLX_HOSTFILE")):
        return _rank(environment, "MLX_RANK", len(hosts), "ring", str(hosts[0][0]).rpartition(":")[0])
    if devices := _listed(environment.get("MLX_IBV_DEVICES")):
        coordinator = environment.get("MLX_JACCL_COORDINATOR", "")
        return _rank(environment, "MLX_RANK", len(devices), "jaccl", coordinator.rpartition(":")[0])
    if "MLX_WORLD_SIZE" in environment:
        count = int(environment["MLX_WORLD_SIZE"])
        return _rank(environment, "MLX_RANK", count, "nccl", environment.get("NCCL_HOST_IP"))
    return None


def _rank(
    environment: Mapping[str, str], variable: str, size: int, backend: Backend, leader: str | None = None
) -> Rank | None:
    number = int(environment[variable])
    if not 0 <= number < size:
        raise ConfigurationError(
            f"{variable} is {number}, in a group of {size}.",
            suggestions=("Start all processes of a group with the same list of hosts, as mlx.launch does.",),
        )
    return Rank(number, size, backend, leader or None) if size > 1 else None


def _listed(path: str | None) -> list[list[str]]:
    """The list in a file that the launcher has written; MLX takes an empty one for a process alone."""
    if not path:
        return []
    try:
        text = Path(path).read_text()
        listed = json.loads(text) if text.strip() else []
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The list of hosts in {path} cannot be read: {error}.",
            suggestions=("Let mlx.launch start the processes, which writes that file.",),
        ) from error
    return listed if isinstance(listed, list) else []


def addresses(rank: Rank) -> list[str]:
    """Where the leader may listen, best first: what the launcher says, or else what this machine's name stands for."""
    if rank.leader:
        return [rank.leader]
    found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    named = dict.fromkeys(str(address[4][0]) for address in found)
    # Debian has the machine's own name stand for 127.0.1.1.
    return sorted(named, key=lambda address: ip_address(address.partition("%")[0]).is_loopback)
