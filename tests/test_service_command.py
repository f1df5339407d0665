"""``jackfield service``: files that start the server, and where they go. ``tests/system`` shows them to systemd."""

import plistlib
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jackfield import __version__
from jackfield.cli import main


def service(*arguments: str, **environment: str) -> Result:
    clean = {"JACKFIELD_PLUGINS": "none", "JACKFIELD_CONFIG": "/dev/null", **environment}
    return CliRunner().invoke(main, ["service", *arguments], env=clean)


def lines(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_user_gets_a_unit_and_the_commands_that_put_it_to_use(home: Path) -> None:
    result = service("install", "--kind", "systemd", JACKFIELD_DRAIN_SECONDS="100")
    file = home / ".config/systemd/user/jackfield.service"
    assert f"Made {file}." in result.stdout
    assert "systemctl --user enable --now jackfield" in result.stdout
    text = file.read_text()
    assert lines(text, "ExecStart") == [f"{sys.executable} -m jackfield serve"]
    assert lines(text, "ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert lines(text, "Type") == ["notify"]
    assert lines(text, "TimeoutStopSec") == ["160"], "longer than requests may go on"


def test_a_file_that_is_there_stays_unless_it_is_meant(home: Path) -> None:
    assert service("install", "--kind", "systemd").exit_code == 0
    again = service("install", "--kind", "systemd")
    assert (again.exit_code, "--force" in again.stderr) == (1, True)
    assert service("install", "--kind", "systemd", "--force").exit_code == 0
    assert "systemctl --user disable --now jackfield" in service("uninstall", "--kind", "systemd").stdout
    gone = service("uninstall", "--kind", "systemd")
    assert (gone.exit_code, "cannot be deleted" in gone.stderr) == (1, True)


def test_odd_paths_are_written_as_systemd_wants_them(home: Path) -> None:
    odd = home / '100% "my" $ettings.toml'
    odd.write_text("port = 1\n")
    (start,) = lines(service("install", "--kind", "systemd", "--print", "--config", str(odd)).stdout, "ExecStart")
    assert start.endswith('100%% \\"my\\" $$ettings.toml"')


def test_for_the_machine_it_runs_as_somebody_without_rights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/jackfield/bin/python")
    text = service("install", "--kind", "systemd", "--system", "--print").stdout
    assert lines(text, "DynamicUser") == ["yes"]
    assert lines(text, "ProtectSystem") == ["strict"]
    text = service("install", "--kind", "systemd", "--system", "--run-as", "me", "--print").stdout
    assert (lines(text, "User"), lines(text, "DynamicUser")) == (["me"], [])
    assert not any(home.iterdir())


def test_what_such_a_service_could_not_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/venv/bin/python")
    result = service("install", "--kind", "systemd", "--system", "--print")
    assert result.exit_code == 1
    assert "--run-as" in result.stderr


def test_launchd_gets_a_property_list(home: Path) -> None:
    assert service("install", "--kind", "launchd").exit_code == 0
    file = home / "Library/LaunchAgents/org.jackfield.server.plist"
    document = plistlib.loads(file.read_bytes())
    assert document["ProgramArguments"] == [sys.executable, "-m", "jackfield", "serve"]
    assert document["KeepAlive"] == {"SuccessfulExit": False}
    assert document["ExitTimeOut"] == 90
    assert "UserName" not in document


def test_launchd_runs_nothing_as_root_by_mistake() -> None:
    assert service("install", "--kind", "launchd", "--system", "--print").exit_code == 1
    result = service("install", "--kind", "launchd", "--system", "--run-as", "me", "--print")
    assert plistlib.loads(result.stdout.encode())["UserName"] == "me"


def test_a_container_file_is_written_here_or_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "Containerfile"
    result = service("install", "--kind", "container", "--output", str(file))
    assert "podman build" in result.stdout
    text = file.read_text()
    assert f'ARG PACKAGE="jackfield[mkl]=={__version__}"' in text
    assert '"$PACKAGE"' in text
    assert "STOPSIGNAL SIGTERM" in text
    assert "USER 10001" in text


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = service("install", "--kind", "container", "--output", str(tmp_path / "file" / "Containerfile"))
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
