"""Puts the settings together, and remembers where each comes from."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jackfield.errors import ConfigurationError
from jackfield.settings.model import ModelSettings, Settings
from jackfield.settings.nearest import nearest
from jackfield.settings.origin import Layer, Origin, find_file, from_environment, from_file, from_flags
from jackfield.settings.presets import from_preset
from jackfield.settings.upstreams import OWN, RouteStep, UpstreamSettings


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, and where they come from."""

    settings: Settings
    file: Path | None
    origins: Mapping[str, Origin]
    """Of the settings that somebody set."""

    def origin(self, name: str) -> Origin:
        """Where a setting's value comes from."""
        return self.origins.get(name, Origin())

    def differences(self, other: "Configuration") -> list[str]:
        """The settings that have other values there."""
        return [name for name in Settings.model_fields if getattr(self.settings, name) != getattr(other.settings, name)]


def read(
    flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Configuration:
    """The configuration of this machine, with the file from where it usually is unless one is given.

    Raises:
        ConfigurationError: see `load`.
    """
    return _put_together(flags, file or find_file(environment), environment)


def load(flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Put the settings together.

    Args:
        flags: from the command line; None stands for a flag that was not given.
        file: a TOML file; none is looked for.
        environment: ``JACKFIELD_PORT`` sets ``port``, and so on.

    Raises:
        ConfigurationError: one of them is wrong; the message names it and where it comes from.
    """
    return _put_together(flags, file, environment).settings


def _put_together(flags: Mapping[str, Any], file: Path | None, environment: Mapping[str, str]) -> Configuration:
    merged: Layer = (from_file(file) if file else {}) | from_environment(environment) | from_flags(flags)
    if (preset := merged.get("preset")) is not None:
        merged = from_preset(str(preset[0])) | merged
    origins = {name: origin for name, (_, origin) in merged.items()}
    try:
        settings = Settings.model_validate({name: value for name, (value, _) in merged.items()})
    except ValidationError as error:
        raise _refusal(error, origins) from None
    if OWN in settings.upstreams:
        raise ConfigurationError(f"An upstream cannot be called {OWN!r}.", suggestions=("Give it another name.",))
    return Configuration(settings, file, origins)


def _refusal(error: ValidationError, origins: Mapping[str, Origin]) -> ConfigurationError:
    problem = error.errors()[0]
    first, *rest = map(str, problem["loc"])
    where = origins.get(first, "the configuration")
    name = ".".join((first, *rest)) if first in ("models", "upstreams") else first
    if problem["type"] == "extra_forbidden":
        known = _fields(first, rest)
        near = nearest(rest[-1] if rest else name, known)
        hint = f"Did you mean {near!r}?" if near else f"Known settings: {', '.join(sorted(known))}."
        return ConfigurationError(f"Unknown setting {name!r} in {where}.", suggestions=(hint,))
    # There may be keys in what upstreams are given.
    got = "" if first == "upstreams" else f" (got {problem['input']!r})"
    return ConfigurationError(
        f"Setting {name!r} from {where} is wrong: {problem['msg']}{got}.",
        suggestions=(f"Correct {name!r} or leave it out.",),
    )


def _fields(first: str, rest: list[str]) -> Iterable[str]:
    """What could stand there."""
    if not rest:
        return Settings.model_fields
    if "route" in rest:
        return RouteStep.model_fields
    return (UpstreamSettings if first == "upstreams" else ModelSettings).model_fields
