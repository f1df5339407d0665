"""NVIDIA's driver, as the doctor sees it: whether it suits the MLX that is installed, and which MLX suits it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jackfield.doctor import machine
from jackfield.models import nvidia
from jackfield.models.device import REFERENCE, Blas, Device

CPU = Device("cpu", "Some CPU", 16 * 2**30, Blas("MKL"), 8)
GPU = Device("cuda", "Some GPU", 16 * 2**30, REFERENCE, 8)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts an NVIDIA GPU with a driver of some version into this machine, as far as it says."""

    def install(version: str) -> None:
        nvidia_smi = tmp_path / "nvidia-smi"
        nvidia_smi.write_text(f"#!/bin/sh\necho {version}\n" if version else "#!/bin/sh\nexit 9\n")
        nvidia_smi.chmod(0o755)
        nvidia.driver_version.cache_clear()

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    yield install
    nvidia.driver_version.cache_clear()


@pytest.mark.parametrize(
    ("version", "verdict", "told", "build"),
    [
        ("580.95.05", "ok", "NVIDIA's driver 580.95.05.", "mlx[cuda13]=="),
        ("550.90.07", "ok", "NVIDIA's driver 550.90.07.", "mlx[cuda12]=="),
        ("535.183.01", "warning", "wants 550 or newer", "mlx[cuda12]=="),
        ("", "failure", "does not answer", "mlx[cuda13]=="),
    ],
)
def test_a_gpu_that_is_not_used(  # noqa: PLR0917
    driver: Callable[[str], None], version: str, verdict: str, told: str, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(version)
    monkeypatch.setattr(machine, "installed_build", lambda: None)
    assert machine._driver(CPU).verdict == verdict
    assert told in machine._driver(CPU).told
    device = machine._device(CPU)
    assert (device.verdict, build in device.advice[0]) == ("warning", True)


@pytest.mark.parametrize(
    ("version", "told", "advice"),
    [
        ("580.95.05", "finds no GPU", "CUDA_VISIBLE_DEVICES"),
        ("550.90.07", "MLX for CUDA 13 wants 580 or newer", "uninstall -y mlx-cuda-13 && "),
        ("535.183.01", "MLX for CUDA 13 wants 580 or newer", "Install a driver from 580 on"),
    ],
)
def test_mlx_for_a_gpu_that_it_cannot_use(
    driver: Callable[[str], None], version: str, told: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(version)
    for module in (machine, nvidia):
        monkeypatch.setattr(module, "installed_build", lambda: "cuda13")
    found = machine._driver(CPU)
    assert (found.verdict, told in found.told, advice in found.advice[-1]) == ("failure", True, True), found
    assert machine._device(CPU).verdict == "failure"
    # Whatever its driver's number is: it works.
    assert machine._driver(GPU).verdict == machine._device(GPU).verdict == "ok"


def test_the_driver_is_told_of(driver: Callable[[str], None], tiny_model: Path) -> None:
    driver("570.124.06")
    command = [sys.executable, "-m", "jackfield", "doctor", str(tiny_model), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = {one["check"]: one for one in json.loads(result.stdout)["checks"]}
    assert found["driver"]["figures"] == {"version": "570.124.06"}
