"""Where values of settings come from: a TOML file, the environment, the command line."""

import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import platformdirs

from jackfield.errors import ConfigurationError
from jackfield.settings.model import Settings
from jackfield.settings.nearest import nearest

PREFIX = "JACKFIELD_"
FILE = "JACKFIELD_CONFIG"
"""The variable that names the file."""

VARIABLES = {f"{PREFIX}{name.upper()}": name for name in Settings.model_fields} | {"JACKFIELD_PLUGINS": "only_plugins"}
"""Settings by their variables. Tables do not go into one, so that the names of plugins have the short one."""

OTHER_VARIABLES = (FILE, "JACKFIELD_API_KEY", "JACKFIELD_API_KEYS", "JACKFIELD_BLAS", "JACKFIELD_DATA_DIR")
"""No settings, since they count before there are any; see docs/configuration.md."""

ALIKE = 0.75
"""How much a variable has to look like a setting's to be taken for a slip: others may have theirs."""


class Origin(NamedTuple):
    """Where a value comes from: the default, a preset, a path, a variable or a flag."""

    kind: Literal["default", "preset", "file", "environment", "flag"] = "default"
    name: str = ""

    def __str__(self) -> str:
        told = {
            "preset": "the preset",
            "file": "the file",
            "environment": "the environment:",
            "flag": "the command line:",
        }
        return f"{told[self.kind]} {self.name}" if self.kind in told else "the default"


Layer = dict[str, tuple[Any, Origin]]
"""Values of settings by name, as somebody wrote them."""


_FLAGS = {"models": "--model", "aliases": "--alias", "adapters": "--adapter", "disabled_plugins": "--disable-plugin"}
"""Those that are not called as their settings are."""


def from_flags(flags: Mapping[str, Any]) -> Layer:
    """None stands for a flag that was not given."""
    return {
        name: (value, Origin("flag", _FLAGS.get(name) or f"--{name.replace('_', '-')}"))
        for name, value in flags.items()
        if value is not None
    }


def from_environment(environment: Mapping[str, str]) -> Layer:
    """An empty variable is as good as none.

    Raises:
        ConfigurationError: one looks like a setting's, and is not.
    """
    for variable in unknown_variables(environment):
        known = [name.removeprefix(PREFIX) for name in (*VARIABLES, *OTHER_VARIABLES)]
        if near := nearest(variable.removeprefix(PREFIX), known, ALIKE):
            raise ConfigurationError(
                f"{variable} in the environment is no setting.", suggestions=(f"Did you mean {PREFIX}{near}?",)
            )
    return {
        name: (environment[variable], Origin("environment", variable))
        for variable, name in VARIABLES.items()
        if environment.get(variable)
    }


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look as if they were for Jackfield, and are not: for a plugin perhaps, or for a client."""
    known = {*VARIABLES, *OTHER_VARIABLES}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def from_file(file: Path) -> Layer:
    """What a TOML file says.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The configuration file {file} cannot be read: {error}", suggestions=("Check its path and syntax.",)
        ) from error
    return {name: (value, Origin("file", str(file))) for name, value in values.items()}


def file_places() -> list[Path]:
    """Where a file is looked for that nobody has named; the first one that is there counts, and no other."""
    own = Path(platformdirs.user_config_dir("jackfield"))
    machine = Path("/Library/Application Support/jackfield" if sys.platform == "darwin" else "/etc/jackfield")
    return [folder / "jackfield.toml" for folder in (own, machine)]


def find_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file that counts when the command line names none."""
    if named := environment.get(FILE):
        return Path(named)
    return next((file for file in file_places() if file.is_file()), None)
