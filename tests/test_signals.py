"""What signals do besides ending the server, and what systemd is told."""

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from jackfield import settings as configuration
from jackfield.cli.reloading import Reloader
from jackfield.errors import ConfigurationError
from serving import DEFAULTS, Server
from serving import serve_measured as serve
from test_drain import PATIENCE, until


class ServiceManager:
    """Listens as systemd does."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE)
        self._socket.bind(address)

    def hears(self, wanted: str) -> dict[str, str]:
        """The next message that has this line, and what came with it."""
        while True:
            lines = self._socket.recv(4096).decode().splitlines()
            if wanted in lines:
                return dict(line.split("=", 1) for line in lines)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def service_manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ServiceManager, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@jackfield-test-{os.getpid()}"
    manager = ServiceManager(name.replace("@", "\0"))
    yield manager, name
    manager.close()


def test_systemd_hears_of_the_start_of_reloading_and_of_the_end(
    tiny_model: Path, service_manager: tuple[ServiceManager, str]
) -> None:
    manager, name = service_manager
    with serve(tiny_model, NOTIFY_SOCKET=name, WATCHDOG_USEC="200000") as server:
        assert manager.hears("READY=1")["STATUS"].startswith("Serving ")
        manager.hears("WATCHDOG=1")
        manager.hears("WATCHDOG=1")
        server.process.send_signal(signal.SIGHUP)
        assert int(manager.hears("RELOADING=1")["MONOTONIC_USEC"]) > 0
        manager.hears("READY=1")
        server.process.send_signal(signal.SIGTERM)
        manager.hears("STOPPING=1")
        assert server.process.wait(PATIENCE) == 0


def test_nobody_listens_where_systemd_should(tiny_model: Path, tmp_path: Path) -> None:
    with serve(tiny_model, NOTIFY_SOCKET=str(tmp_path / "nobody")) as server:
        until(lambda: any("systemd cannot be told READY=1" in line for line in server.log))


# --- SIGHUP ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configured(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    file = tmp_path_factory.mktemp("configured") / "jackfield.toml"
    file.write_text('log_level = "warning"\n')
    with serve(tiny_model, JACKFIELD_CONFIG=str(file)) as server:
        yield server, file


def reload(configured: tuple[Server, Path], text: str, answer: str) -> str:
    """The last line of what the server says to this file."""
    server, file = configured
    file.write_text(text)
    known = len(server.log)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: any(answer in line for line in server.log[known:]))
    return server.log[-1]


def test_the_log_level_changes_while_the_server_runs(configured: tuple[Server, Path]) -> None:
    assert not any(line.startswith("INFO") for line in configured[0].log)
    reload(configured, 'log_level = "debug"\n', "have been read again: log_level is debug.")
    httpx2.get(f"{configured[0].url}/health")
    until(lambda: any("GET /health" in line for line in configured[0].log))


def test_what_takes_a_restart_is_told_until_there_is_one(configured: tuple[Server, Path]) -> None:
    for _ in range(2):
        reload(configured, "max_batch = 3\nhook_seconds = 7\n", "These take a restart: max_batch, hook_seconds.")


@pytest.mark.parametrize(
    ("text", "told"), [("log_levle = 1", "Did you mean 'log_level'?"), ("max_batch = ?", "at line 1")]
)
def test_a_damaged_file_changes_nothing(configured: tuple[Server, Path], text: str, told: str) -> None:
    assert "The settings stay as they are." in reload(configured, text, told)
    assert configured[0].process.poll() is None


def test_other_things_are_read_again_too_each_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise ConfigurationError("The keys are damaged.", suggestions=("Mend them.",))

    read = partial(configuration.read, {}, environment={"JACKFIELD_CONFIG": os.devnull})
    reloader, done = Reloader(read(), read), []
    reloader.others += [broken, lambda: done.append("read")]
    reloader.reload()
    assert done == ["read"]
    assert "The keys are damaged. Mend them." in caplog.text


def test_a_terminal_that_goes_away_ends_the_server(tiny_model: Path) -> None:
    own, theirs = pty.openpty()
    command = [sys.executable, "-m", "jackfield", "serve", "--port", "0", "--model", str(tiny_model)]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - it has no threads to speak of
        env={**os.environ, **DEFAULTS},
    )
    os.close(theirs)
    try:
        said = b""
        while b"Serving" not in said:
            said += os.read(own, 4096)
        os.close(own)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_a_second_signal_ends_a_containers_first_process_too() -> None:
    pretend = "import os, signal; os.getpid = lambda: 1; from jackfield.cli import signals; "
    then = "signals._let_the_next_one_kill(); signal.raise_signal(signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", pretend + then], check=False).returncode == 128 + signal.SIGTERM
