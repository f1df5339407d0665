"""Nothing leaves the machine, as the kernel is asked: whoever asks it, however short."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from serving import serve
from test_security_outgoing import CONNECT, SEND, UNSEEN, work


def tracer(file: Path) -> Sequence[str]:
    calls = "trace=connect,sendto,sendmsg,sendmmsg,execve"
    return ("strace", "-fD", "--seccomp-bpf", "-q", "-e", calls, "-e", "signal=none", "-o", str(file), "--")


def addresses(file: Path) -> list[str]:
    """Calls that name another end; answers to those who have come name none."""
    deadline = time.monotonic() + 60
    while not re.match(r"(\d+) .*^\1 +\+\+\+ exited", file.read_text(), re.DOTALL | re.MULTILINE):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [line for line in file.read_text().splitlines() if "sa_family=AF_INET" in line]


def test_a_server_at_work_speaks_to_nobody(starter: Path, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    with serve("starter", launcher=tracer(file), JACKFIELD_PLUGINS="") as server:
        work(server)
    assert addresses(file) == []


@pytest.mark.parametrize("script", [CONNECT, SEND, UNSEEN], ids=["connect", "udp", "C"])
def test_nothing_escapes_the_watch(script: str, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        command = [sys.executable, "-c", script.format(port=listener.getsockname()[1])]
        subprocess.run([*tracer(file), *command], check=True, timeout=60)
    assert len(addresses(file)) == 1
