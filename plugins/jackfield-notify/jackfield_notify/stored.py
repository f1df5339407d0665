"""The preferences that a user has set through the API: they outlive the server."""

import logging
import os
import time
from pathlib import Path

from pydantic import ValidationError

from jackfield.errors import UnavailableError
from jackfield_notify.preferences import Preferences

logger = logging.getLogger(__name__)


class StoredPreferences:
    """A file of JSON, its owner's alone to read.

    Args:
        file: where it is, once somebody has set something.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> Preferences | None:
        """What somebody has set, if anybody has; a damaged file is moved aside."""
        try:
            return Preferences.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            aside = self._file.with_name(f"{self._file.name}.damaged-{time.time_ns()}")
            self._file.rename(aside)
            logger.exception("The preferences in %s cannot be read: they were moved to %s.", self._file, aside)
            return None

    def save(self, preferences: Preferences) -> None:
        """Keep them, whole or not at all.

        Raises:
            UnavailableError: they cannot be written.
        """
        fresh = self._file.with_name(f"{self._file.name}.new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(preferences.model_dump_json(indent=2))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
        except OSError as error:
            raise UnavailableError(
                f"The settings cannot be written: {error.strerror}.", suggestions=("Make room on the disk.",)
            ) from error

    def forget(self) -> None:
        """Go back to those of the TOML file."""
        self._file.unlink(missing_ok=True)
