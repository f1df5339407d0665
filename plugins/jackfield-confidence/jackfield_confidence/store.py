"""Calibrations on disk, a file for each model."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from jackfield.errors import JackfieldError
from jackfield_confidence.calibration import Calibration

logger = logging.getLogger(__name__)

FOLDER = "calibrations"
LONGEST = 120
"""Characters of a model's name that go into a file's."""


class Store:
    """The calibrations in a plugin's folder."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / FOLDER

    def file(self, model: str) -> Path:
        """Where a model's calibration is, whatever characters its name has."""
        name = quote(model, safe="")
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{hashlib.sha256(model.encode()).hexdigest()[:16]}"
        return self.folder / f"{name}.json"

    def save(self, calibration: Calibration) -> Path:
        """Keep it, in place of what there was; a reader never sees half of it.

        Raises:
            JackfieldError: the folder cannot be written to.
        """
        file = self.file(calibration.model)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(file, calibration.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise JackfieldError(
                f"The calibration cannot be written to {file}: {error.strerror or error}.",
                suggestions=("Set JACKFIELD_DATA_DIR to a folder that can be written to, for the server as well.",),
            ) from error
        return file

    def forget(self, model: str) -> bool:
        """Go back to the default weights; tells whether there was a calibration."""
        file = self.file(model)
        found = file.exists()
        file.unlink(missing_ok=True)
        return found

    def all(self) -> dict[str, Calibration]:
        """By model; a file that is damaged, or that another version wrote, is passed over with a warning."""
        return {found.model: found for found in self._read()}

    def _read(self) -> Iterator[Calibration]:
        for file in sorted(self.folder.glob("*.json")):
            try:
                yield Calibration.model_validate_json(file.read_bytes())
            except (OSError, ValidationError) as error:
                reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} fields are wrong"
                logger.warning(
                    "The calibration %s cannot be used (%s): the default weights are. Calibrate again, or remove it.",
                    file,
                    reason,
                )


def _replace(file: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as new:
            new.write(text)
            new.flush()
            os.fsync(new.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
