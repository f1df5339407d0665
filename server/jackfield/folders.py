"""Where things are kept on disk."""

import os
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """What has to outlive the server: ``JACKFIELD_DATA_DIR``, or the user's folder for such data."""
    return Path(os.environ.get("JACKFIELD_DATA_DIR") or platformdirs.user_data_dir("jackfield"))
