"""Disks that are full, and folders that nobody may write to: answers go out all the same, and who waits is told why.

The disks are file systems in memory, in a name space of the process's own, which ordinary users may have too.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from caller import ask, chat, post

import gguf_files
from gguf_files import VOCABULARY
from model_fixtures import random_weights, tiny_config
from prompts import WORDS
from serving import DEFAULTS, Server, serve

MEGABYTE = 1 << 20
MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && mkdir "$2/cache" "$2/data" && shift 2 && exec "$@"'
READ_ONLY = 'mount -t tmpfs tmpfs "$1" && mkdir "$1/cache" "$1/data" && mount -o remount,ro "$1" && shift && exec "$@"'


@pytest.fixture(autouse=True)
def name_spaces(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([*read_only(tmp_path), "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")


def small(disk: Path, nbytes: int) -> list[str]:
    """Run what follows with a disk of this size."""
    return ["unshare", "-rm", "sh", "-c", MOUNT, "sh", str(nbytes), str(disk)]


def read_only(disk: Path) -> list[str]:
    """Run what follows with a disk that cannot be written to."""
    return ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", str(disk)]


def places(disk: Path) -> dict[str, str]:
    return {
        "JACKFIELD_CACHE_DIR": str(disk / "cache"),
        "JACKFIELD_DATA_DIR": str(disk / "data"),
        "JACKFIELD_PREFIX_CACHE_DISK_BYTES": str(1 << 30),
        "JACKFIELD_PREFIX_CACHE_BYTES": str(MEGABYTE),
    }


def seen(server: Server, path: Path) -> Path:
    """What the server sees there."""
    return Path(f"/proc/{server.process.pid}/root", *path.parts[1:])


def questions(server: Server, number: int) -> None:
    """Ask what the prefix cache has to make room for."""
    chance = random.Random(number)
    for _ in range(number):
        body = {"prompt": " ".join(chance.choices(WORDS, k=1500)), "max_tokens": 1}
        assert post(server, "/v1/completions", body)[0] == 200


def stored(server: Server) -> str:
    """The id of a response that is to be stored."""
    status, answer = post(server, "/v1/responses", {"input": "hi", "store": True, "max_output_tokens": 16})
    assert status == 200
    return str(json.loads(answer)["id"])


def warnings(server: Server, word: str) -> int:
    return sum(line.startswith("WARNING") and word in line for line in server.log)


def test_a_full_disk(tiny_model: Path, tmp_path: Path) -> None:
    with serve(tiny_model, launcher=small(tmp_path, 4 * MEGABYTE), **places(tmp_path)) as server:
        kept = stored(server)
        ballast = seen(server, tmp_path / "ballast")
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        questions(server, 12)
        lost = stored(server)
        assert ask(server, "GET", f"/v1/responses/{lost}")[0] == 404
        assert ask(server, "GET", f"/v1/responses/{kept}")[0] == 200
        assert post(server, "/v1/responses", {"input": "and?", "previous_response_id": kept})[0] == 200
        assert warnings(server, "could not be stored") == 1
        assert warnings(server, "writes no more") == 1
        assert not list(seen(server, tmp_path).rglob("*.tmp")), "nothing half-written stays"
        ballast.unlink()
        assert ask(server, "GET", f"/v1/responses/{stored(server)}")[0] == 200
        is_undisturbed(server)


def test_a_disk_that_cannot_be_written_to(tiny_model: Path, tmp_path: Path) -> None:
    with serve(tiny_model, launcher=read_only(tmp_path), **places(tmp_path)) as server:
        questions(server, 12)
        lost = stored(server)
        assert ask(server, "GET", f"/v1/responses/{lost}")[0] == 404
        assert warnings(server, "could not be stored") == 1
        assert warnings(server, "writes no more") == 1
        is_undisturbed(server)


def is_undisturbed(server: Server) -> None:
    assert post(server, "/v1/chat/completions", chat("hi"))[0] == 200
    assert ask(server, "GET", "/ready")[0] == 200
    assert not [line for line in server.log if "Traceback" in line or line.startswith("ERROR")]


# --- Models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config("qwen2", len(VOCABULARY))
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "model.gguf", config, random_weights(config))


def refused(file: Path, launcher: Sequence[str], disk: Path, then: str = "true") -> str:
    """What somebody is told who wants to serve a file; a command may look at the disk afterwards."""
    command = [sys.executable, "-m", "jackfield", "serve", "--model", str(file), "--port", "0"]
    settings = [f"{name}={value}" for name, value in {**DEFAULTS, **places(disk)}.items()]
    looking = ["sh", "-c", f'"$@"; code=$?; {then}; exit $code', "sh", "env", *settings, *command]
    done = subprocess.run([*launcher, *looking], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr + done.stdout


def test_a_model_that_does_not_fit_on_the_disk(gguf_file: Path, tmp_path: Path) -> None:
    told = refused(gguf_file, small(tmp_path, gguf_file.stat().st_size // 2), tmp_path)
    assert "Too little space" in told
    assert "JACKFIELD_CACHE_DIR" in told


def test_a_disk_that_is_full_before_the_model_is_whole(gguf_file: Path, tmp_path: Path) -> None:
    """There seemed to be room for it, but somebody else writes too."""
    size = -(-gguf_file.stat().st_size // 4096) * 4096
    look = f'find "{tmp_path}" -type f -size +0 | sed "s/^/LEFT /"'
    told = refused(gguf_file, small(tmp_path, size), tmp_path, look)
    assert "The disk is full" in told
    assert "JACKFIELD_CACHE_DIR" in told
    assert "LEFT" not in told


def test_a_model_cannot_be_prepared_where_nobody_may_write(gguf_file: Path, tmp_path: Path) -> None:
    told = refused(gguf_file, read_only(tmp_path), tmp_path)
    assert "cannot be written" in told
    assert "JACKFIELD_CACHE_DIR" in told
