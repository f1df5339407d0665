"""The machine a measurement was made on, as far as it tells."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("jackfield", "mlx", "mlx-lm", "mkl")


def describe() -> dict[str, str]:
    """Processor, memory, system and the versions that matter."""
    facts = {
        "cpu": cpu(),
        "cores": str(cores()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "gpu": output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            facts[package] = version(package)
    return {name: fact for name, fact in facts.items() if fact}


def line(facts: dict[str, str]) -> str:
    """The facts on one line."""
    head = [facts["cpu"], f"{facts['cores']} cores", facts["memory"], facts.get("gpu", ""), facts["system"]]
    versions = [f"{name} {facts[name]}" for name in ("python", *PACKAGES) if name in facts]
    return " · ".join([*filter(None, head), *versions])


def cpu() -> str:
    """The processor's name."""
    with suppress(OSError):
        for row in Path("/proc/cpuinfo").read_text().splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def output(*command: str) -> str:
    """The first line a command prints; nothing where it is missing or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip().partition("\n")[0]
    return ""
