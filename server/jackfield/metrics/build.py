"""What runs here: versions, which say when something has changed, and the process."""

import platform
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from jackfield import __version__


def register_build(collectors: CollectorRegistry) -> None:
    """Add ``jackfield_build_info`` and, where there is a ``/proc``, ``process_…``."""
    versions = {
        "version": __version__,
        "python": platform.python_version(),
        "mlx": _version("mlx"),
        "mlx_lm": _version("mlx-lm"),
    }
    info = Gauge("jackfield_build_info", "1; the labels say what runs here.", list(versions), registry=collectors)
    info.labels(**versions).set(1)
    ProcessCollector(registry=collectors)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
