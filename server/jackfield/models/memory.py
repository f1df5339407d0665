"""The machine's memory as this process may use it: the kernel's count, or the control group's if that is less."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Host memory, in bytes."""

    total: int
    available: int
    """What new allocations can take without swapping or being killed."""


def host_memory(root: Path = Path("/")) -> Memory:
    """What this process may use; ``root`` is the file system's root (tests give another)."""
    memory = _kernel_memory(root)
    for group in _cgroups(root):
        if (limit := _cgroup_memory(group)) is not None:
            memory = Memory(min(memory.total, limit.total), min(memory.available, limit.available))
    return memory


def _kernel_memory(root: Path) -> Memory:
    """From ``/proc/meminfo`` (proc(5), in KiB); elsewhere all physical memory counts as available."""
    try:
        lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines}
        return Memory(kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024)
    except (OSError, KeyError, ValueError, IndexError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(total, total)


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's memory groups and their parents (cgroups(7)); every one of them limits it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        # A container sees the host's path here, while its own group is mounted at the top: missing folders are fine.
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _cgroup_memory(group: Path) -> Memory | None:
    """Limit and remainder of one group; None where it sets no limit. Names: v2, then v1."""
    limit = _integer(group / "memory.max") or _integer(group / "memory.limit_in_bytes")
    used = _integer(group / "memory.current") or _integer(group / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    # The page cache counts as used, but the kernel drops its inactive part before it kills.
    return Memory(limit, max(0, limit - max(0, used - _inactive_file(group))))


def _inactive_file(group: Path) -> int:
    """Bytes of page cache that the kernel gives back first."""
    try:
        words = (group / "memory.stat").read_text().split()
    except OSError:
        return 0
    stat = dict(zip(words[::2], words[1::2], strict=False))
    return int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)


def _integer(file: Path) -> int | None:
    """The number in ``file``; None if there is no such file, or it says ``max``."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
