"""What MLX computes on, and the BLAS that has to be in the process before it.

Nothing here imports MLX at the top: on a Linux CPU its matrix products go to whatever ``cblas_sgemm`` the process
already has when ``mlx.core`` is loaded, and the one it brings itself is some 80 times slower than a real one.
"""

import ctypes
import functools
import importlib
import importlib.metadata
import logging
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jackfield.errors import ConfigurationError
from jackfield.models.memory import host_memory
from jackfield.models.nvidia import cuda_command, has_nvidia, installed_build

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Blas:
    """The library that multiplies float32 matrices on the CPU."""

    name: str
    path: str | None = None
    fast: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """What the models run on."""

    kind: Literal["metal", "cuda", "cpu"]
    name: str
    memory_bytes: int
    """All memory that models, caches and activations may share."""
    blas: Blas
    """Only asked on a CPU."""
    cores: int = 0
    """CPU cores this process may use."""


REFERENCE = Blas("MLX's reference BLAS", fast=False)
ACCELERATE = Blas("Accelerate")


@functools.cache
def load_blas() -> Blas:
    """Put a fast BLAS into the process; must run before anything imports ``mlx.core``.

    ``JACKFIELD_BLAS=reference`` leaves MLX its own, ``JACKFIELD_BLAS=/path/to/lib.so`` takes that library, which must
    export plain ``cblas_*`` names.

    Raises:
        ConfigurationError: the library that ``JACKFIELD_BLAS`` names cannot be loaded.
    """
    chosen = os.environ.get("JACKFIELD_BLAS", "")
    if sys.platform == "darwin":
        return ACCELERATE
    if chosen == "reference" or (installed_build() and has_nvidia()):
        return REFERENCE
    if "mlx.core" in sys.modules:
        logger.warning("mlx.core was imported before a BLAS was loaded: matrix products will be slow")
        return REFERENCE
    if chosen:
        return _load_chosen(chosen)
    return next(filter(None, (_load(name, path) for name, path in _candidates())), REFERENCE)


def _load_chosen(path: str) -> Blas:
    blas = _load(Path(path).name, path)
    if blas is None:
        raise ConfigurationError(
            f"JACKFIELD_BLAS names {path!r}, which cannot be loaded or has no cblas_sgemm.",
            suggestions=(
                "Unset JACKFIELD_BLAS to take the best BLAS found.",
                "Give the full path of a shared library.",
            ),
        )
    return blas


def _load(name: str, path: str) -> Blas | None:
    """Load ``path`` so that its symbols come before MLX's own; None if it is no BLAS that works here."""
    try:
        # Global, because symbols are looked up in load order: this is what makes MLX call it.
        library = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    except OSError as error:
        logger.debug("cannot load %s: %s", path, error)
        return None
    return Blas(name, path) if hasattr(library, "cblas_sgemm") else None


def _candidates() -> Iterator[tuple[str, str]]:
    """(Name, path) of the BLAS libraries to try, best first."""
    for path in (*mkl_files(), *sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))):
        yield "MKL", str(path)
    yield "OpenBLAS", "libopenblas.so.0"


def mkl_files() -> Iterator[Path]:
    """Where pip put MKL's single-library interface."""
    try:
        files = importlib.metadata.files("mkl") or ()
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (Path(str(file.locate())).resolve() for file in files if file.name.startswith("libmkl_rt.so"))


def import_mlx_lm() -> None:
    """Import mlx-lm but keep the process's limit on open files, which it lowers to 2048 for everybody.

    Where there is no Metal, its models get along without.
    """
    import resource  # noqa: PLC0415

    set_limit = resource.setrlimit
    # Even the hard limit, which cannot be raised again; and where that is below 4096 already, the import would fail.
    resource.setrlimit = lambda *_: None
    try:
        importlib.import_module("mlx_lm.utils")
    finally:
        resource.setrlimit = set_limit
    # Imports MLX, for which a BLAS may have to be loaded first.
    importlib.import_module("jackfield.models.kernels").replace_metal()


def detect_device(blas: Blas) -> Device:
    """Look at what MLX will compute on. Imports MLX."""
    import mlx.core as mx  # noqa: PLC0415

    if mx.default_device() == mx.Device(mx.gpu, 0):
        return _gpu(mx, blas)
    # Compiled functions gain nothing measurable on a CPU, while MLX builds them with g++ at run time and loads the
    # result from a guessable name in /tmp, where any local user may have put something else.
    mx.disable_compile()
    name = str(mx.device_info(mx.cpu).get("device_name") or platform.machine())
    return Device("cpu", name, host_memory().total, blas, _cores())


def _gpu(mx: "ModuleType", blas: Blas) -> Device:
    info = mx.device_info(mx.gpu)
    memory = next(filter(None, map(info.get, ("max_recommended_working_set_size", "total_memory", "memory_size"))), 0)
    kind: Literal["metal", "cuda"] = "metal" if mx.metal.is_available() else "cuda"
    if kind == "metal" and memory:
        # Otherwise macOS pages out the weights of a large model between requests.
        mx.set_wired_limit(int(memory))
    return Device(kind, str(info.get("device_name", kind)), int(memory), blas, _cores())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(device: Device, dtype: str) -> str:
    """One line for the start-up screen: the device, its BLAS, the weights' type; and how to make it faster."""
    size = f"{device.memory_bytes / 2**30:.1f} GiB"
    if device.kind != "cpu":
        return f"{device.name} ({device.kind}, {size}), {dtype} weights"
    line = f"CPU {device.name} ({device.cores} cores, {size}), {device.blas.name}, {dtype} weights"
    advice = _advice(device.blas)
    return f"{line}. {advice}" if advice else line


def _advice(blas: Blas) -> str:
    """What would make a CPU faster; empty if nothing would."""
    if has_nvidia() and installed_build():
        return "An NVIDIA GPU is there that MLX does not use: see what jackfield doctor says of its driver"
    if has_nvidia():
        return f"An NVIDIA GPU is there but MLX is its CPU build; to use the GPU: {cuda_command()}"
    if blas.fast:
        return ""
    command = (
        "pip install 'jackfield[mkl]'"
        if sys.platform == "linux" and platform.machine() == "x86_64"
        else "apt install libopenblas0-pthread"
    )
    return f"This BLAS is slow: prompts take about 15 times longer than with {command}"
