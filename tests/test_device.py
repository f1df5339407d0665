"""What MLX computes on, and the BLAS under it. Each choice is made once a process, so these tests start their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jackfield.models import device as devices
from jackfield.models.device import REFERENCE, Blas, Device, describe
from jackfield.models.memory import Memory, host_memory
from jackfield.models.nvidia import cuda_command

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX has a fast BLAS or a GPU")

# A BLAS that says it was called, and leaves the product as it was.
FAKE_BLAS = """
#include <stdio.h>
void cblas_sgemm() { fputs("fake sgemm\\n", stderr); }
"""
MULTIPLY = "import mlx.core as mx; a = mx.ones((64, 64)); mx.eval(a @ a)"


def python(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh process."""
    clean = {name: value for name, value in os.environ.items() if name != "JACKFIELD_BLAS"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=check)


def loaded(**environment: str) -> dict[str, Any]:
    """What `load_blas` chooses in a fresh process."""
    code = "import json, dataclasses as d; from jackfield.models.device import load_blas as f; "
    return json.loads(python(code + "print(json.dumps(d.asdict(f())))", **environment).stdout)


def test_importing_the_module_does_not_import_mlx() -> None:
    done = python("import sys, jackfield.models.device; print('mlx.core' in sys.modules)")
    assert done.stdout.strip() == "False"


@LINUX
def test_mkl_is_taken_if_it_is_installed() -> None:
    if not list(devices.mkl_files()):
        pytest.skip("MKL is not installed")
    chosen = loaded()
    assert chosen["name"] == "MKL"
    assert chosen["fast"]
    assert Path(chosen["path"]).name.startswith("libmkl_rt")


@LINUX
def test_the_reference_blas_can_be_asked_for() -> None:
    assert loaded(JACKFIELD_BLAS="reference") == {"name": REFERENCE.name, "path": None, "fast": False}


@LINUX
def test_mlx_multiplies_with_the_library_that_was_loaded(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    source, library = tmp_path / "blas.c", tmp_path / "libfake.so"
    source.write_text(FAKE_BLAS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    done = python(
        f"from jackfield.models.device import load_blas; load_blas(); {MULTIPLY}", JACKFIELD_BLAS=str(library)
    )
    assert "fake sgemm" in done.stderr


@LINUX
@pytest.mark.parametrize("path", ["/no/such/library.so", "libc.so.6"])
def test_a_library_that_is_no_blas_is_refused(path: str) -> None:
    code = """
from jackfield.errors import ConfigurationError
from jackfield.models.device import load_blas
try:
    load_blas()
except ConfigurationError as error:
    print(error.message, *error.suggestions)
"""
    said = python(code, JACKFIELD_BLAS=path).stdout
    assert path in said
    assert "Unset JACKFIELD_BLAS" in said


@LINUX
def test_too_late_is_told() -> None:
    done = python("import mlx.core; from jackfield.models.device import load_blas; print(load_blas().fast)")
    assert done.stdout.strip() == "False"
    assert "imported before" in done.stderr


@LINUX
def test_a_cpu_needs_no_compiler(tmp_path: Path) -> None:
    """MLX compiles fused functions with g++ while it runs; one that is there but broken would end every request."""
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nexit 1\n')
    compiler.chmod(0o755)
    code = f"""
from jackfield.models.device import *
device = detect_device(load_blas())
import mlx.core as mx
fused = mx.compile(lambda a, b: mx.exp(a) * b + {os.getpid()}.0 * mx.sin(b), shapeless=True)
print(fused(mx.ones(4), mx.ones(4)))
"""
    assert "array" in python(code, PATH=f"{tmp_path}:{os.environ['PATH']}").stdout


def test_this_machine(device: Device) -> None:
    assert device.kind in ("metal", "cuda", "cpu")
    assert device.name
    assert device.memory_bytes > 2**30
    assert device.cores >= 1


@LINUX
def test_mlx_lm_leaves_the_limit_on_open_files_alone() -> None:
    code = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
from jackfield.models.device import import_mlx_lm
import_mlx_lm()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1000, hard), "changed"
resource.setrlimit(resource.RLIMIT_NOFILE, (999, hard))
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 999, "cannot be set any more"
"""
    python(code)


# The start-up line


def cpu(blas: Blas) -> Device:
    return Device("cpu", "Some CPU", 16 * 2**30, blas, 8)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_nvidia", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_a_fast_cpu_is_described_without_advice() -> None:
    line = describe(cpu(Blas("MKL", "/lib/libmkl_rt.so")), "float32")
    assert line == "CPU Some CPU (8 cores, 16.0 GiB), MKL, float32 weights"


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("machine", "command"),
    [("x86_64", "pip install 'jackfield[mkl]'"), ("aarch64", "apt install libopenblas0-pthread")],
)
def test_a_slow_blas_comes_with_what_to_install(machine: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("sys.platform", "linux")
    line = describe(cpu(REFERENCE), "float32")
    assert command in line
    assert "\n" not in line


def test_an_unused_nvidia_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_nvidia", lambda: True)
    monkeypatch.setattr(devices, "installed_build", lambda: None)
    assert cuda_command() in describe(cpu(REFERENCE), "float32")
    monkeypatch.setattr(devices, "installed_build", lambda: "cuda13")
    assert "jackfield doctor" in describe(cpu(REFERENCE), "float32")


def test_a_gpu_is_described_without_its_cpu() -> None:
    line = describe(Device("metal", "Apple M4 Max", 96 * 2**30, Blas("Accelerate"), 16), "4-bit")
    assert line == "Apple M4 Max (metal, 96.0 GiB), 4-bit weights"


# Memory


def write(root: Path, **files: str) -> None:
    """Files under ``root``; ``__`` in names stands for ``/``."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 4000000 kB\nHugePages_Total: 0\n"
TOTAL, AVAILABLE = 8_000_000 * 1024, 4_000_000 * 1024


def test_memory_of_the_whole_machine(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO)
    assert host_memory(tmp_path) == Memory(TOTAL, AVAILABLE)


def test_a_control_group_limits_memory(tmp_path: Path) -> None:
    """Version 2, as Docker shows it: the group is mounted at the top; page cache can be given back."""
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/docker/1234\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    write(group, **{"memory.max": "2000000000", "memory.current": "1500000000"})
    write(group, **{"memory.stat": "anon 1000000000\ninactive_file 500000000\n"})
    assert host_memory(tmp_path) == Memory(2_000_000_000, 1_000_000_000)


def test_a_control_group_of_version_1_and_its_parent(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="5:cpu:/a\n4:memory:/a/b\n0::/\n")
    group = tmp_path / "sys/fs/cgroup/memory/a/b"
    group.mkdir(parents=True)
    write(group, **{"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "1000"})
    write(group.parent, **{"memory.limit_in_bytes": "3000000000", "memory.usage_in_bytes": "1000000000"})
    assert host_memory(tmp_path) == Memory(3_000_000_000, 2_000_000_000)


def test_a_group_without_limit_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/user.slice\n")
    group = tmp_path / "sys/fs/cgroup/user.slice"
    group.mkdir(parents=True)
    write(group, **{"memory.max": "max", "memory.current": "1000"})
    assert host_memory(tmp_path) == Memory(TOTAL, AVAILABLE)


def test_memory_where_there_is_no_proc(tmp_path: Path) -> None:
    assert host_memory(tmp_path).total > 2**30


def test_on_apple_silicon_the_weights_are_kept_from_being_paged_out() -> None:
    wired: list[int] = []
    fake = SimpleNamespace(
        gpu="gpu",
        device_info=lambda _: {"device_name": "Apple M4", "max_recommended_working_set_size": 2**34},
        metal=SimpleNamespace(is_available=lambda: True),
        set_wired_limit=wired.append,
    )
    device = devices._gpu(fake, Blas("Accelerate"))
    assert (device.kind, device.name, device.memory_bytes) == ("metal", "Apple M4", 2**34)
    assert wired == [2**34]
