"""Nothing leaves the machine: a whole server at work opens no connection and asks for no name."""

import json
import os
import sys
from pathlib import Path

import httpx2
from openai import OpenAI

from serving import serve

WATCH = """
import sys, os, json

WATCHED = {"connect", "sendto", "getaddrinfo", "gethostbyname", "gethostbyaddr"}

def watch(event, arguments):
    if event.startswith("socket.") and event[7:] in WATCHED:
        with open(os.environ["WATCHED"], "a") as file:
            file.write(json.dumps([event, repr(arguments)]) + "\\n")

sys.addaudithook(watch)
open(os.environ["WATCHED"], "a").close()
"""
"""Python tells a hook of every connection and every name that is looked up, whoever asks for it."""


def test_a_server_at_work_speaks_to_nobody(starter: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    seen = tmp_path / "seen"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    everything = {"JACKFIELD_PLUGINS": "", "PYTHONPATH": path, "WATCHED": str(seen)}
    with serve("starter", **everything) as server:
        connections = _remote(server.process.pid)
        with OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
            client.chat.completions.create(model="starter", messages=[{"role": "user", "content": "Hi"}], max_tokens=4)
            client.embeddings.create(model="starter", input="Hi")
            client.responses.create(model="starter", input="Hi", max_output_tokens=16, store=True)
        for where in ("/metrics", "/v1/models", "/v1/plugins", "/ready"):
            assert httpx2.get(server.url + where).status_code == 200
        connections |= _remote(server.process.pid)
    told = [json.loads(line) for line in seen.read_text().splitlines()]
    # Its own loop talks to itself, and a name for the log is none of anybody else's.
    assert [one for one in told if "127.0.0.1" not in one[1]] == []
    assert connections == set()


def test_the_watch_sees_what_is_done(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "sitecustomize.py").write_text(WATCH)
    seen = tmp_path / "seen"
    script = "import socket; s = socket.socket(); s.settimeout(0.1); s.connect_ex(('203.0.113.1', 80))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "WATCHED": str(seen)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
    assert "203.0.113.1" in seen.read_text()


def _remote(process: int) -> set[str]:
    """Addresses of other machines that a process has connections to, as the kernel has them (proc(5))."""
    inodes = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for name in ("tcp", "tcp6", "udp", "udp6") for line in _table(name)]
    far = {row[2].split(":")[0] for row in rows if row[9] in inodes}
    here = {"0100007F", "00000000", "0" * 32, "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    return far - here


def _table(name: str) -> list[str]:
    file = Path("/proc/net") / name
    return file.read_text().splitlines()[1:] if file.exists() else []
