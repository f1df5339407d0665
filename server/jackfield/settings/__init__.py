"""Settings: defaults < TOML file < JACKFIELD_* environment < flags."""

from jackfield.settings.loading import Configuration, load, read
from jackfield.settings.model import Settings
from jackfield.settings.origin import Origin, file_places, find_file

__all__ = ["Configuration", "Origin", "Settings", "file_places", "find_file", "load", "read"]
