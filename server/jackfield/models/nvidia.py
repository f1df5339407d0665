"""NVIDIA's GPUs: whether there is one, which driver it has, and which of MLX's builds goes with that."""

import functools
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

Build = Literal["cuda13", "cuda12"]

WANTED: dict[Build, int] = {"cuda13": 580, "cuda12": 550}
"""The oldest drivers for MLX's builds, the newest first (https://ml-explore.github.io/mlx/build/html/install.html)."""

SECONDS = 10.0
"""For nvidia-smi, which takes two or three where nothing else keeps the driver awake."""


def has_nvidia() -> bool:
    """Whether an NVIDIA GPU can be seen from here (device node, or WSL's ``nvidia-smi``)."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def installed_build() -> Build | None:
    """The CUDA build that MLX is installed as; None for its CPU or Metal build."""
    names = (distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions())
    found = {name.replace("_", "-") for name in names}
    return next((build for build in WANTED if f"mlx-cuda-{build[-2:]}" in found), None)


@functools.cache
def driver_version() -> str | None:
    """Of NVIDIA's driver, such as ``580.95.05``; None where nobody says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"\d+(\.\d+)*", said)
    return match[0] if match else None


def is_enough(version: str, build: Build) -> bool:
    """Whether a driver is new enough for one of MLX's builds."""
    return int(version.partition(".")[0]) >= WANTED[build]


def fitting_build(version: str | None) -> Build:
    """The newest build that a driver is enough for; of one that is too old for all, the one that wants least."""
    fitting = (build for build in WANTED if version is None or is_enough(version, build))
    return next(fitting, "cuda12")


def cuda_command() -> str:
    """The shell line that puts the CUDA build that suits the driver in the place of the MLX that is installed.

    All wheels own ``mlx/lib/libmlx.so``: the other one has to go first, or whichever was installed last wins.
    """
    pip, build = f"{Path(sys.executable).name} -m pip", fitting_build(driver_version())
    there = {"cuda13": "mlx-cuda-13", "cuda12": "mlx-cuda-12", None: "mlx-cpu"}[installed_build()]
    return f"{pip} uninstall -y {there} && {pip} install 'mlx[{build}]=={importlib.metadata.version('mlx')}'"
