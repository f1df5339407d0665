"""Service files in the eyes of those who read them: systemd's own checks, and a linter for container files.

Neither systemd nor containers run here: these say that the files are well formed and well confined, not that they run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jackfield.cli.service_files import Kind, Service
from jackfield.settings import Settings

EXPOSURE = 25
"""Of 100, as `systemd-analyze security` counts; a service that is not confined at all has more than 90."""


def written(folder: Path, kind: Kind, **how: object) -> Path:
    file = Service(Settings(), **how).file(kind)  # type: ignore[arg-type]
    path = folder / file.path.name
    path.write_text(file.text)
    return path


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("how", [{"system": True, "run_as": "daemon"}, {}], ids=["machine", "user"])
def test_systemd_understands_its_units(tmp_path: Path, how: dict[str, object]) -> None:
    unit = written(tmp_path, "systemd", **how, config=tmp_path / "100% my settings.toml")
    result = run("systemd-analyze", "verify", *([] if how else ["--user"]), unit)
    # Of other units of this machine it may have something to say.
    assert not [line for line in result.stderr.splitlines() if unit.name in line], result.stderr


def test_a_mistake_would_be_noticed(tmp_path: Path) -> None:
    unit = written(tmp_path, "systemd", system=True, run_as="daemon")
    unit.write_text(unit.read_text().replace("ProtectClock=yes", "ProtectClok=yes"))
    assert "ProtectClok" in run("systemd-analyze", "verify", unit).stderr


@pytest.mark.parametrize("run_as", [None, "daemon"])
def test_the_machines_unit_is_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_as: str | None) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    unit = written(tmp_path, "systemd", system=True, run_as=run_as)
    result = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", unit)
    assert result.returncode == 0, result.stdout


def test_the_container_file_has_no_faults(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    assert hadolint.exists() or shutil.which("hadolint"), "make lint installs it"
    result = run(hadolint if hadolint.exists() else "hadolint", written(tmp_path, "container"))
    assert (result.returncode, result.stdout) == (0, "")
