"""The command: what it prints, and how it ends."""

import os
import resource
import signal
import socket
import subprocess
import sys

import httpx2

from jackfield.cli import serve as command
from serving import serve


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jackfield", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_has_examples():
    result = run("serve", "--help")
    assert result.returncode == 0
    assert "jackfield serve --model mlx-community/Qwen2.5-Coder-32B-Instruct-4bit" in result.stdout
    assert "serve" in run("--help").stdout


def test_version():
    assert run("--version").stdout.startswith("jackfield, version ")


def test_a_model_that_is_not_there_ends_with_a_message_and_what_to_do(tmp_path):
    result = run("serve", "--model", str(tmp_path / "nothing"), "--port", "0")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("jackfield: ")
    assert "  - " in result.stderr


def test_a_damaged_model_is_told_before_the_port_opens(tiny_model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_model.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    result = run("serve", "--model", str(broken), "--port", "0")
    assert result.returncode == 1
    assert "Serving" not in result.stderr
    assert "Traceback" not in result.stderr
    assert "broken" in result.stderr


def test_a_port_in_use_is_told_at_once(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("serve", "--model", str(tiny_model), JACKFIELD_PORT=str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert "Cannot listen on 127.0.0.1" in result.stderr


def test_the_start_up_line_tells_device_blas_and_dtype(tiny_model):
    with serve(tiny_model) as server:
        assert any("float32" in line for line in server.log)
    with serve(tiny_model, JACKFIELD_BLAS="reference") as server:
        assert any("mkl" in line.lower() or "openblas" in line.lower() for line in server.log), "what to install"


def test_the_environment_chooses_model_host_and_port(tiny_model):
    with serve(tiny_model, JACKFIELD_HOST="127.0.0.2") as server:
        assert server.url.startswith("http://127.0.0.2:")
        assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}


def test_terminated_and_interrupted_servers_end_cleanly(tiny_model):
    for number in (signal.SIGTERM, signal.SIGINT):
        with serve(tiny_model) as server:
            assert httpx2.get(f"{server.url}/ready").status_code == 200
            server.process.send_signal(number)
            assert server.process.wait(60) == 0
        assert not any("Traceback" in line or "Aborted" in line for line in server.log)


def test_a_server_asks_for_as_many_open_files_as_it_gets():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        command.allow_open_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == limits[1]
        assert soft == (command.OPEN_FILES if hard == resource.RLIM_INFINITY else min(command.OPEN_FILES, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
