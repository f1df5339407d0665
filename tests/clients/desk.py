"""A user's desk: a home and a project of their own, and a server to talk to."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guide
import httpx2
from asked import Asked, Ledger

INSTALLED = Path(os.environ.get("CLIENTS_DIR", "nowhere"))
"""Where `make test-clients` has put the clients."""
NODE_MODULES = INSTALLED / "node" / "node_modules"
HERE, APART = Path(sys.executable), INSTALLED / "venv" / "bin" / "python"
"""The Pythons: light clients are beside Jackfield, the others apart."""
SECONDS = 240


@dataclass(frozen=True)
class Output:
    """What a program has printed."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> Any:
        """The last line, read as JSON; the program must have ended well."""
        assert self.status == 0, self
        return json.loads(self.out.splitlines()[-1])

    def __str__(self) -> str:
        return f"status {self.status}\n--- out\n{self.out}\n--- err\n{self.err}"


class Desk:
    """Where a client is set up as docs/clients.md says, and run."""

    def __init__(self, folder: Path, url: str, lines: Sequence[str]) -> None:
        """``lines`` are those of the server's log, and become more."""
        self.home, self.project = folder / "home", folder / "project"
        self.url = url
        (self.model,) = httpx2.get(f"{url}/v1/models").raise_for_status().json()["data"]
        self._ledger = Ledger(url, lines)
        self._changes: dict[str, str] = {}
        self.project.mkdir(parents=True)
        self.home.mkdir()
        # Where Node looks for packages, and assistants do not.
        (folder / "node_modules").symlink_to(NODE_MODULES)

    def asked(self) -> list[Asked]:
        """What the server was asked so far."""
        return self._ledger.asked()

    def change(self, old: str, new: str) -> None:
        """From now on, write this instead of what the page shows; it tells of it in words."""
        self._changes[old] = new

    def set_up(self, title: str) -> None:
        """Write the files of this section."""
        for block in guide.section(title):
            if block.file:
                self.write(self.home / block.file.removeprefix("~/"), block)

    def write(self, file: Path, block: guide.Block) -> None:
        """Write what the page shows, for the server here."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self._here(block.text))

    def run(self, title: str, language: str = "sh", more: str = "", python: Path = HERE, **environment: str) -> Output:
        """Run the one block of this section in this language, and ``more`` after it."""
        return self.program(language, guide.only(title, language).text + more, python, **environment)

    def program(self, language: str, text: str, python: Path = HERE, **environment: str) -> Output:
        """Run a program in the project, with the server here where the page has its own."""
        interpreter, ending = {"sh": ("bash", "sh"), "js": ("node", "mjs"), "python": (python, "py")}[language]
        file = self.project / f"program.{ending}"
        file.write_text(self._here(text))
        done = subprocess.run(
            [interpreter, file.name],
            cwd=self.project,
            env=self._environment() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Output(done.returncode, done.stdout, done.stderr)

    def _here(self, text: str) -> str:
        for old, new in self._changes.items():
            text = text.replace(old, new)
        return guide.at(text, self.url, self.model["id"], self.model["context_length"])

    def _environment(self) -> dict[str, str]:
        """Nothing of the machine's own, and nobody to ask but the server here."""
        nobody = "http://127.0.0.1:9"
        return {
            "PATH": f"{NODE_MODULES / '.bin'}:{HERE.parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "HTTP_PROXY": nobody,
            "HTTPS_PROXY": nobody,
            "NO_PROXY": "127.0.0.1,localhost",
        }
