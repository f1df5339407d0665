"""What a server holds, second by second: by its own account, and by the system's."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from jackfield.metrics.engines import PRESSURES
from serving import Server

SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Look:
    """How things stand at one moment; 0 for what the system does not tell."""

    seconds: float
    waiting: float
    reading: float
    running: float
    kv_bytes: float
    device_bytes: float
    cache_memory_bytes: float
    cache_disk_bytes: float
    folder_bytes: int
    rss_bytes: int
    threads: int
    files: int
    preemptions: float
    restarts: float
    pressure: str
    answer_seconds: float
    """How long /metrics took: the event loop should always have time."""

    @property
    def idle(self) -> bool:
        """Whether the engine has nothing to do."""
        return not (self.waiting or self.reading or self.running)


@dataclass
class Watch:
    """Looks at a server every second."""

    server: Server
    folder: Path
    """Where its cache is on disk."""
    began: float = field(default_factory=time.monotonic)
    looks: list[Look] = field(default_factory=list)

    @property
    def preemptions(self) -> float:
        """How often somebody has had to make room."""
        return self.looks[-1].preemptions if self.looks else 0

    async def keep_looking(self) -> None:
        """Until cancelled."""
        async with httpx2.AsyncClient(timeout=60) as http:
            while True:
                self.looks.append(await self.look(http))
                await asyncio.sleep(SAMPLE_SECONDS)

    async def until_idle(self, seconds: float = 60) -> Look:
        """Wait until nothing is left to do, for a while at least, so that connections can end."""
        async with httpx2.AsyncClient(timeout=60) as http, asyncio.timeout(seconds):
            while True:
                await asyncio.sleep(2 * SAMPLE_SECONDS)
                look = await self.look(http)
                if look.idle:
                    return look

    async def look(self, http: httpx2.AsyncClient) -> Look:
        """One look, on a connection of its own that stays open."""
        asked = time.monotonic()
        text = (await http.get(f"{self.server.url}/metrics")).raise_for_status().text
        answered = time.monotonic()
        series = dict(parsed(text))
        rss, threads, files = of_process(self.server.process.pid)
        return Look(
            seconds=round(answered - self.began, 2),
            waiting=series["num_requests_waiting"],
            reading=series["num_requests_reading"],
            running=series["num_requests_running"] - series["num_requests_reading"],
            kv_bytes=series["memory_bytes kv_cache"],
            device_bytes=series["device_memory_bytes"],
            cache_memory_bytes=series.get("prefix_cache_bytes memory", 0),
            cache_disk_bytes=series.get("prefix_cache_bytes disk", 0),
            folder_bytes=size_of(self.folder),
            rss_bytes=rss,
            threads=threads,
            files=files,
            preemptions=series["num_preemptions_total"],
            restarts=series["engine_restarts_total"],
            pressure=next(level for level in PRESSURES if series[f"memory_pressure {level}"]),
            answer_seconds=round(answered - asked, 3),
        )


def parsed(text: str) -> Iterator[tuple[str, float]]:
    """Series of a server with one model, by name and the value of their other label."""
    for line in text.splitlines():
        if line.startswith("jackfield_"):
            name, _, rest = line.removeprefix("jackfield_").partition("{")
            labels, _, value = rest.rpartition("} ")
            pairs = [label.partition("=") for label in labels.split(",")]
            others = [value.strip('"') for label, _, value in pairs if label != "model_name"]
            yield " ".join([name, *others]), float(value)


def of_process(pid: int) -> tuple[int, int, int]:
    """Resident bytes, threads and open files; only the first where there is no /proc."""
    process = Path(f"/proc/{pid}")
    if not process.exists():
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
        return int(told or 0) * 1024, 0, 0
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"]), len(list((process / "fd").iterdir()))


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, which may go while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
