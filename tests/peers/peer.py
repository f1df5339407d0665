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
COUNTLESS = {
    "ray": "Ray 2.60 looks for vLLM's tokenizer under a name that vLLM does not have",
    "mlx_lm": "mlx_lm.server has no place for it",
}
"""Who does not count tokens, and why."""
# Where servers share the cores, threads of one wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

VLLM_ON_CPU = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "PYTHONPATH": "",
}

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

RAY = """
import sys
import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app
model, port, metrics, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ray.init(
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=100 << 20,
    _temp_dir=folder,
    _node_ip_address="127.0.0.1",
    _metrics_export_port=metrics,
)
serve.start(http_options={"host": "127.0.0.1", "port": port})
more = {"runner": "pooling", "convert": "embed"} if sys.argv[5:] == ["embedding"] else {}
config = LLMConfig(
    model_loading_config={"model_id": "starter", "model_source": model},
    deployment_config={"num_replicas": 1},
    accelerator_config={"kind": "cpu"},
    placement_group_config={"bundles": [{"CPU": 1}]},
    log_engine_metrics=True,
    engine_kwargs={
        "max_model_len": 2048,
        "enforce_eager": True,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        **more,
    },
)
serve.run(build_openai_app({"llm_configs": [config]}), blocking=True)
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
        busy: where it tells whether it is at work, and in which words.
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
        """Start it, and wait for it."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                env={**os.environ, **ONE_THREAD, **self.environment},
                start_new_session=True,
            )
        self.wait()

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """End it as a crash would, with all its processes."""
        if self._process is not None:
            for process in self.processes():
                os.kill(process, 9)
            self._process.wait()
            self._process = None

    def processes(self, name: str = "") -> list[int]:
        """Those of its session, as some have groups of their own; all, or those that are called so."""
        assert self._process is not None
        listed = subprocess.run(["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        named = [int(line.split()[0]) for line in listed.splitlines() if name in line]
        return [one for one in named if _session(one) == self._process.pid]

    def is_at_work(self) -> bool:
        """Whether it says so."""
        assert self.busy is not None
        url, pattern = self.busy
        return re.search(pattern, httpx2.get(url).text) is not None

    def _answers(self) -> bool:
        try:
            if httpx2.get(f"{self.url}/v1/models", timeout=5).status_code != 200:
                return False
            # Ray tells of its models before they are loaded, and holds back what they are asked.
            asked = {"model": self.model, "prompt": "Hi", "max_tokens": 1}
            post = httpx2.post(f"{self.url}/v1/completions", json=asked, timeout=START_SECONDS)
        except httpx2.HTTPError:
            return False
        return post.status_code in (200, 400, 501)


def llama_cpp(model: Path, log: Path, *more: str) -> Peer:
    """llama.cpp with a GGUF file."""
    require("xllamacpp")
    port = _free_port()
    busy = (f"http://127.0.0.1:{port}/slots", '"is_processing":true')
    command = [str(PYTHON), "-c", LLAMA_CPP, str(model), str(port), *more]
    return Peer("llama.cpp", "llama.cpp", "starter", port, command, log, busy)


def vllm(model: Path, log: Path) -> Peer:
    """vLLM on this CPU."""
    require("vllm")
    port = _free_port()
    flags = f"--model {model} --served-model-name starter --host 127.0.0.1 --port {port} --max-model-len 2048"
    more = "--enforce-eager --enable-tokenizer-info-endpoint --enable-auto-tool-choice --tool-call-parser hermes"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *flags.split(), *more.split()]
    busy = (f"http://127.0.0.1:{port}/metrics", r"vllm:num_requests_running\{.*\} [1-9]")
    return Peer("vllm", "vllm", "starter", port, command, log, busy, VLLM_ON_CPU)


def ray(model: Path, log: Path, *more: str) -> Peer:
    """Ray Serve LLM before a vLLM on this CPU."""
    require("ray.serve.llm")
    port, metrics = _free_port(), _free_port()
    command = [str(PYTHON), "-c", RAY, str(model), str(port), str(metrics), str(log.parent), *more]
    environment = {
        **VLLM_ON_CPU,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_metrics_report_interval_ms": "500",
    }
    busy = (f"http://127.0.0.1:{metrics}/metrics", r"ray_vllm_num_requests_running\{.*\} [1-9]")
    return Peer("ray", "vllm", "starter", port, command, log, busy, environment)


def mlx_lm(model: Path, log: Path) -> Peer:
    """mlx_lm.server, which is installed beside Jackfield."""
    port = _free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    return Peer("mlx_lm", "openai", str(model), port, command, log, environment={"HF_HUB_OFFLINE": "1"})


def require(module: str) -> None:
    """Skip where it cannot be installed."""
    if subprocess.run([str(PYTHON), "-c", f"import {module}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{module} is not installed beside the peers: not every platform has it")


def _session(process: int) -> int | None:
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
