"""Servers that nobody here wrote, as processes of their own."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx2
import pytest

PYTHON = Path(os.environ.get("PEERS_DIR", "nowhere")) / "bin" / "python"
"""Where `make test-peers` has put them."""
START_SECONDS = 240
# Where servers share the cores, threads of one wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

LLAMA_CPP = """
import signal, sys
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.hostnames = ["127.0.0.1"]
parameters.n_ctx, parameters.n_parallel = 4096, 2
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
if sys.argv[3:] == ["embedding"]:
    parameters.embedding, parameters.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(parameters)
signal.pause()
"""


@dataclass
class Peer:
    """A server that can be started, and started again at the same place.

    Args:
        kind: what it is.
        speaks: what a Jackfield is told of it.
        model: what it calls the starter.
        port: where it listens.
        command: what starts it.
        log: where what it prints goes.
        busy: a path of its that tells whether it is at work.
        environment: variables for it.
    """

    kind: str
    speaks: Literal["openai", "vllm", "llama.cpp"]
    model: str
    port: int
    command: Sequence[str]
    log: Path
    busy: tuple[str, str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                env={**os.environ, **ONE_THREAD, **self.environment},
                start_new_session=True,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """End it as a crash would, with all its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def is_at_work(self) -> bool:
        """Whether it says so."""
        assert self.busy is not None
        path, pattern = self.busy
        return re.search(pattern, httpx2.get(self.url + path).text) is not None

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/v1/models", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False


def llama_cpp(model: Path, log: Path, *more: str) -> Peer:
    """llama.cpp with a GGUF file."""
    require("xllamacpp")
    port, busy = _free_port(), ("/slots", '"is_processing":true')
    command = [str(PYTHON), "-c", LLAMA_CPP, str(model), str(port), *more]
    return Peer("llama.cpp", "llama.cpp", "starter", port, command, log, busy)


def vllm(model: Path, log: Path) -> Peer:
    """vLLM on this CPU."""
    require("vllm")
    port = _free_port()
    flags = f"--model {model} --served-model-name starter --host 127.0.0.1 --port {port} --max-model-len 2048"
    more = "--enforce-eager --enable-tokenizer-info-endpoint --enable-auto-tool-choice --tool-call-parser hermes"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *flags.split(), *more.split()]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PYTHONPATH": "",
    }
    busy = ("/metrics", r"vllm:num_requests_running\{.*\} [1-9]")
    return Peer("vllm", "vllm", "starter", port, command, log, busy, environment)


def mlx_lm(model: Path, log: Path) -> Peer:
    """mlx_lm.server, which is installed beside Jackfield."""
    port = _free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    return Peer("mlx_lm", "openai", str(model), port, command, log, environment={"HF_HUB_OFFLINE": "1"})


def require(module: str) -> None:
    """Skip where it cannot be installed."""
    if subprocess.run([str(PYTHON), "-c", f"import {module}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{module} is not installed beside the peers: not every platform has it")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
