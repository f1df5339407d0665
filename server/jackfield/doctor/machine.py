"""This machine: what MLX computes on, how fast that is, and where models lie."""

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
from huggingface_hub.constants import HF_HUB_CACHE

from jackfield.doctor.finding import Finding, failure, ok, skipped, warning
from jackfield.models.device import Device, describe
from jackfield.models.memory import host_memory
from jackfield.models.nvidia import WANTED, cuda_command, driver_version, has_nvidia, installed_build, is_enough
from jackfield.models.sizes import gigabytes

PINNED = ("mlx", "mlx-lm")
LITTLE_DISK = 5 * 10**9
MATRIX = 1024
"""Rows and columns of the matrices that are multiplied."""
READ_BYTES = 1 << 28
"""What is read at once to see how fast memory is: more than any cache holds."""
SECONDS = 0.2
"""How long each of the two is measured."""


def machine_checks(device: Device, cache: Path) -> Iterator[Finding]:
    """Hardware, MLX and the disk."""
    yield _device(device)
    yield _driver(device)
    yield _versions()
    yield _speed(device)
    yield _memory()
    yield _disk("disk", cache, "What Jackfield makes lies", "JACKFIELD_CACHE_DIR")
    yield _disk("hub cache", Path(HF_HUB_CACHE), "Models of the Hub lie", "HF_HOME")


def _device(device: Device) -> Finding:
    told = describe(device, "any").removesuffix(", any weights").split(". ")[0]
    if device.kind == "cpu" and has_nvidia() and installed_build():
        return failure("device", f"{told}, although there is an NVIDIA GPU and MLX is for such.", "See 'driver'.")
    if device.kind == "cpu" and has_nvidia():
        return warning("device", f"{told}, although there is an NVIDIA GPU.", f"Use it: {cuda_command()}")
    if device.kind == "cpu" and not device.blas.fast:
        advice = "pip install 'jackfield[mkl]' (x86-64), or apt install libopenblas0-pthread"
        return warning("device", f"{told}: its BLAS is slow, prompts take about 15 times as long.", advice)
    return ok("device", told)


def _driver(device: Device) -> Finding:
    if device.kind == "metal":
        return ok("driver", f"Metal, as macOS {platform.mac_ver()[0]} has it.")
    if not has_nvidia():
        return skipped("driver", "There is no GPU that MLX could use.")
    if (version := driver_version()) is None:
        return failure("driver", "NVIDIA's driver does not answer.", "See what this says: nvidia-smi")
    told, build = f"NVIDIA's driver {version}", installed_build()
    if device.kind == "cuda" or (build is None and is_enough(version, "cuda12")):
        return ok("driver", f"{told}.", version=version)
    wanted = build or "cuda12"
    if is_enough(version, wanted):
        return failure("driver", f"{told}, and MLX finds no GPU.", "See nvidia-smi and CUDA_VISIBLE_DEVICES.")
    advice = [f"Install a driver from {WANTED[wanted]} on."]
    advice += [f"Or take MLX for CUDA 12: {cuda_command()}"] if is_enough(version, "cuda12") else []
    told += f", and MLX for CUDA {wanted[-2:]} wants {WANTED[wanted]} or newer."
    return (failure if build else warning)("driver", told, *advice, version=version)


def _versions() -> Finding:
    wanted = dict(filter(None, map(_pin, importlib.metadata.requires("jackfield") or ())))
    there = {name: importlib.metadata.version(name) for name in PINNED}
    told = ", ".join(f"{name} {version}" for name, version in there.items())
    wrong = [f"{name}=={wanted[name]}" for name in PINNED if wanted.get(name, there[name]) != there[name]]
    if wrong:
        return warning("versions", f"{told}, which nobody has tried together.", f"pip install {' '.join(wrong)}")
    return ok("versions", told)


def _pin(requirement: str) -> tuple[str, str] | None:
    match = re.match(r"([\w-]+)(?:\[\w+\])?==([\w.]+)", requirement)
    return (match[1], match[2]) if match else None


def _speed(device: Device) -> Finding:
    dtype = mx.float32 if device.kind == "cpu" else mx.float16
    flops, bandwidth = multiplied(dtype), memory_bandwidth(dtype)
    told = f"{flops / 1e9:,.0f} GFLOP/s, and {bandwidth / 1e9:.1f} GB/s from memory ({dtype}, measured just now)."
    if device.kind == "cpu" and flops < 2e10:
        return warning("speed", told, "Reading prompts will be slow: see 'device'.", flops=flops, bandwidth=bandwidth)
    return ok("speed", told, flops=flops, bandwidth=bandwidth)


def multiplied(dtype: mx.Dtype) -> float:
    """Floating-point operations a second in products of matrices: what reading a prompt is made of."""
    matrix = mx.ones((MATRIX, MATRIX), dtype)
    return 2 * MATRIX**3 / _seconds(lambda: mx.eval(matrix @ matrix))


def memory_bandwidth(dtype: mx.Dtype) -> float:
    """Bytes a second that a product with one vector reads: what decides how fast tokens come."""
    width = 4096
    rows = READ_BYTES // dtype.size // width
    matrix, vector = mx.ones((rows, width), dtype), mx.ones((width, 1), dtype)
    mx.eval(matrix, vector)
    return READ_BYTES / _seconds(lambda: mx.eval(matrix @ vector))


def _seconds(work: Callable[[], None]) -> float:
    """The shortest of several times: others may have the machine meanwhile."""
    work()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _memory() -> Finding:
    memory = host_memory()
    told = f"{gigabytes(memory.available)} of {gigabytes(memory.total)} are available."
    figures = {"available_bytes": memory.available, "total_bytes": memory.total}
    if memory.available < memory.total / 4:
        return warning("memory", told, "Close other programs, or serve a smaller model.", **figures)
    return ok("memory", told, **figures)


def _disk(check: str, folder: Path, what: str, setting: str) -> Finding:
    place = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(place).free
    told = f"{what} in {folder}; {gigabytes(free)} are free there."
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return failure(
            check,
            f"Nothing can be written to {place}: {os.strerror(error.errno or 0)}.",
            f"Set {setting} to a folder that you may write to.",
            free_bytes=free,
        )
    if free < LITTLE_DISK:
        return warning(check, told, f"Free some space, or set {setting} to another disk.", free_bytes=free)
    return ok(check, told, free_bytes=free)
