"""What Open MPI wants of a process beside what MLX tells it."""

import ctypes
import os
import sys

from jackfield.group.rank import Rank

LIBRARY = "libmpi.dylib" if sys.platform == "darwin" else "libmpi.so"
"""What MLX looks for, unless told in MLX_MPI_LIBNAME."""


def finish(rank: Rank) -> None:
    """Say that this process ends as it should; waits for the others to say so. Harmless without MPI.

    To ``mpirun`` a process that ends without it has failed; MLX does not say it.
    """
    if rank.backend == "mpi":
        ctypes.CDLL(os.environ.get("MLX_MPI_LIBNAME", LIBRARY)).MPI_Finalize()
