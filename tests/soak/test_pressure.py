"""While another program takes the machine's memory, new requests are refused; once it is back, they are answered.

Takes up to three quarters of the free memory meanwhile, and leaves the rest to others.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console
from watch import parsed

from jackfield.engine.pace import SMALLEST_SLICE
from jackfield.models.device import detect_device, load_blas
from jackfield.models.memory import host_memory
from jackfield.models.plan import CPU_SCORE_COPIES
from serving import Server, serve

RESERVE = 0.6
"""Of the free memory, what the server wants to stay free: it refuses when less than half of that is."""
LEAVE = 0.9
"""What the other program leaves, of the memory below which requests are refused."""
SECONDS = 120
"""Within which it must be seen that memory has gone, and that it is back."""


def test_memory_that_goes_away_is_answered_with_503_until_it_is_back(starter: Path, tmp_path: Path) -> None:
    if detect_device(load_blas()).kind != "cpu":
        pytest.skip("what other programs take of a GPU is not seen")
    model = with_long_context(starter, tmp_path / "model", int(RESERVE * host_memory().available))
    reserve = planned(model)["workspace_bytes"]
    with serve(model, JACKFIELD_CACHE_DIR=str(tmp_path)) as server:
        assert status(server, 4) == (200, None)
        before = answering(server, 100)
        with ballast(int(LEAVE * reserve / 2)) as taken:
            refusals = until(server, (503, "memory_pressure"))
            assert pressure(server) == "refusing"
            before.join(SECONDS)
        assert before.result == (200, None), "who was being answered is answered to the end"
        waited = until(server, (200, None))
        assert calm(server)
        series = figures(server)
    kept = {
        "ballast_bytes": taken,
        "refusals": 1 + waited,
        "answered_before": refusals,
        "preemptions": series["num_preemptions_total"],
        "restarts": series["engine_restarts_total"],
    }
    assert kept["restarts"] == 0
    Console().print("under pressure:", kept)
    if file := os.environ.get("SOAK_JSON"):
        path = Path(file)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, "pressure": kept}, indent=1) + "\n")


def with_long_context(model: Path, folder: Path, reserve: int) -> Path:
    """The same model, but so long a context that its plan wants about ``reserve`` bytes to stay free for a step."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    token_bytes = 4 * CPU_SCORE_COPIES * SMALLEST_SLICE * config["num_attention_heads"]
    config["max_position_embeddings"] = reserve // token_bytes
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def planned(model: Path) -> dict[str, Any]:
    """What `jackfield doctor` says; that the whole context does not fit is no matter here."""
    command = [sys.executable, "-m", "jackfield", "doctor", str(model), "--json"]
    plan: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return plan


@contextmanager
def ballast(leave: int) -> Iterator[int]:
    """Another program takes memory until so many bytes are left; tells how many it took."""
    command = [sys.executable, str(Path(__file__).with_name("ballast.py")), str(leave)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


class Asking(threading.Thread):
    """A request that is being answered meanwhile."""

    def __init__(self, server: Server, tokens: int) -> None:
        super().__init__(daemon=True)
        self.result: tuple[int, str | None] | None = None
        self._asked = server, tokens

    def run(self) -> None:
        """Wait for the answer."""
        self.result = status(*self._asked)


def answering(server: Server, tokens: int) -> Asking:
    """Have a request answered; returns once that has begun."""
    asking = Asking(server, tokens)
    asking.start()
    deadline = time.monotonic() + SECONDS
    while not figures(server)["num_requests_running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    return asking


def status(server: Server, tokens: int) -> tuple[int, str | None]:
    """How a request ends: with which status, and which error."""
    body = {"model": server.model, "prompt": "The sea", "max_tokens": tokens, "ignore_eos": True}
    response = httpx2.post(f"{server.api}/completions", json=body, timeout=SECONDS)
    if response.status_code == 503:
        assert int(response.headers["Retry-After"]) > 0
    return response.status_code, response.json().get("error", {}).get("code")


def until(server: Server, wanted: tuple[int, str | None]) -> int:
    """Ask until requests end so; returns how many ended otherwise before, in the only other way that is right."""
    ways = {(200, None), (503, "memory_pressure")}
    deadline, others = time.monotonic() + SECONDS, 0
    while (found := status(server, 1)) != wanted:
        assert found in ways
        assert time.monotonic() < deadline, f"still {found}"
        others += 1
        time.sleep(0.2)
    return others


def calm(server: Server) -> bool:
    """Whether memory is at its usual level again, soon."""
    deadline = time.monotonic() + SECONDS
    while (level := pressure(server)) not in ("none", "evicting") and time.monotonic() < deadline:
        time.sleep(0.2)
    return level in ("none", "evicting")


def figures(server: Server) -> dict[str, float]:
    """The server's metrics."""
    return dict(parsed(httpx2.get(f"{server.url}/metrics", timeout=SECONDS).text))


def pressure(server: Server) -> str:
    """At which level memory is."""
    series = figures(server)
    return next(name.split()[1] for name, value in series.items() if name.startswith("memory_pressure") and value)
