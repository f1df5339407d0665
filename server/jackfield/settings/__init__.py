"""Settings: defaults < preset < TOML file < JACKFIELD_* environment < flags."""

from jackfield.settings.loading import Configuration, load, read
from jackfield.settings.model import ModelSettings, Settings
from jackfield.settings.origin import Origin, file_places, find_file
from jackfield.settings.presets import PRESETS

__all__ = [
    "PRESETS",
    "Configuration",
    "ModelSettings",
    "Origin",
    "Settings",
    "file_places",
    "find_file",
    "load",
    "read",
]
