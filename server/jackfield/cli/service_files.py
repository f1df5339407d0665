"""Files with which others start the server: systemd, launchd, and what runs containers."""

import plistlib
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from jackfield import __version__
from jackfield.errors import ConfigurationError
from jackfield.settings import Settings

Kind = Literal["systemd", "launchd", "container"]

UNIT = "jackfield.service"
LABEL = "org.jackfield.server"

LAST_SECONDS = 60
"""What the end may take beside ``drain_seconds``: the last connections, and the prefix cache on its way to disk."""


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """One of these files.

    Args:
        path: where it belongs.
        text: what it says.
        start: commands that put it to use.
        stop: commands to give before it is deleted.
    """

    path: Path
    text: str
    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """How the server is to be started.

    Args:
        settings: for how long its end may take.
        config: the file with its settings, if one was named.
        system: for the whole machine, not for one user.
        run_as: for a whole machine, the user as whom it runs.
    """

    settings: Settings
    config: Path | None = None
    system: bool = False
    run_as: str | None = None

    @property
    def stop_seconds(self) -> int:
        """What its end may take."""
        return round(self.settings.drain_seconds) + LAST_SECONDS

    @property
    def command(self) -> list[str]:
        """What starts it: this Python, which has it installed."""
        config = ["--config", str(self.config.absolute())] if self.config else []
        return [sys.executable, "-m", "jackfield", "serve", *config]

    def file(self, kind: Kind) -> ServiceFile:
        """The file for one of those who start servers.

        Raises:
            ConfigurationError: it cannot run that way.
        """
        return {"systemd": self._systemd, "launchd": self._launchd, "container": self._container}[kind]()

    def _systemd(self) -> ServiceFile:
        if self.system:
            self._refuse_hidden_python()
        user = f"User={self.run_as}" if self.run_as else "DynamicUser=yes"
        text = _filled(
            "system.service.tmpl" if self.system else "user.service.tmpl",
            command=" ".join(map(_quoted, self.command)),
            stop_seconds=str(self.stop_seconds),
            user=user,
            home="read-only" if self.run_as else "yes",
        )
        folder = Path("/etc/systemd/system") if self.system else Path.home() / ".config/systemd/user"
        control = "sudo systemctl" if self.system else "systemctl --user"
        linger = () if self.system else ("loginctl enable-linger    (to have it run when you are not logged in)",)
        start = (f"{control} daemon-reload", f"{control} enable --now jackfield", *linger)
        return ServiceFile(folder / UNIT, text, start, (f"{control} disable --now jackfield",))

    def _refuse_hidden_python(self) -> None:
        homes = (Path("/home"), Path("/root"))
        if self.run_as is None and any(home in Path(sys.executable).parents for home in homes):
            raise ConfigurationError(
                f"{sys.executable} is in somebody's home, where a service of the machine cannot see it.",
                suggestions=("Install Jackfield elsewhere, such as /opt.", "Say as whom to run it: --run-as USER."),
            )

    def _launchd(self) -> ServiceFile:
        if self.system and self.run_as is None:
            raise ConfigurationError(
                "A service of the machine would run as root.", suggestions=("Say as whom to run it: --run-as USER.",)
            )
        folder = Path("/Library/LaunchDaemons") if self.system else Path.home() / "Library/LaunchAgents"
        logs = Path("/Library/Logs") if self.system else Path.home() / "Library/Logs"
        document = {
            "Label": LABEL,
            "ProgramArguments": self.command,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": self.stop_seconds,
            # Otherwise the system slows it down, as what nobody waits for.
            "ProcessType": "Interactive",
            "SoftResourceLimits": {"NumberOfFiles": 10_240},
            "Umask": 0o077,
            "StandardErrorPath": str(logs / "jackfield.log"),
        }
        if self.run_as and self.system:
            document["UserName"] = self.run_as
        path = folder / f"{LABEL}.plist"
        domain = "system" if self.system else "gui/$(id -u)"
        sudo = "sudo " if self.system else ""
        return ServiceFile(
            path,
            plistlib.dumps(document, sort_keys=False).decode(),
            (f"{sudo}launchctl bootstrap {domain} {path}",),
            (f"{sudo}launchctl bootout {domain}/{LABEL}",),
        )

    def _container(self) -> ServiceFile:
        text = _filled("Containerfile.tmpl", version=__version__, stop_seconds=str(self.stop_seconds))
        run = f"podman run -p 127.0.0.1:8080:8080 -v jackfield:/var/lib/jackfield --stop-timeout {self.stop_seconds}"
        return ServiceFile(Path("Containerfile"), text, ("podman build -t jackfield .", f"{run} jackfield"))


def _filled(template: str, **words: str) -> str:
    text = (files("jackfield") / "templates" / "service" / template).read_text("utf-8")
    return Template(text).substitute(words)


def _quoted(argument: str) -> str:
    """As systemd.service(5) wants arguments: its own escapes, % for specifiers and $ for variables doubled."""
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(character.isspace() or character in "\"'\\;" for character in argument) else escaped
