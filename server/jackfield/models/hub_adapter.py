"""Adapters by their names: folders, or repositories on the Hugging Face Hub."""

from pathlib import Path

from jackfield.errors import ModelLoadError
from jackfield.models.adapter_folder import CONFIG, MLX, PEFT, is_whole
from jackfield.models.folder import Folder
from jackfield.models.hub import Hub
from jackfield.models.hub_client import cached_snapshot, explained, fetch_files
from jackfield.models.progress import SILENT, Progress

WANTED = (CONFIG, MLX, PEFT)


def fetch_adapter(name: str, progress: Progress = SILENT) -> Path:
    """The folder of the adapter ``name``: a path, or ``org/name[@revision]``, which is downloaded if need be.

    Raises:
        ModelLoadError: there is no such adapter, or it cannot be had.
    """
    if not _is_on_hub(name):
        return Path(name).expanduser()  # whose contents are checked when it is read
    repository, _, revision = name.partition("@")
    with explained(repository, revision):
        folder = fetch_files(repository, revision, WANTED, progress, title=f"Downloading {name}")
    if not is_whole(folder):
        raise ModelLoadError(
            f"{repository} on the Hugging Face Hub is no adapter: it has to hold {CONFIG}, and {MLX} or {PEFT}.",
            suggestions=("Check the spelling.", "Pickles (adapter_model.bin) are not read: take one in safetensors."),
        )
    return folder


def local_adapter(name: str) -> Path | None:
    """Where it is, if it need not be downloaded; nobody is asked."""
    if not _is_on_hub(name):
        return Path(name).expanduser()
    repository, _, revision = name.partition("@")
    folder = cached_snapshot(repository, revision, WANTED)
    return folder if folder and is_whole(folder) else None


def _is_on_hub(name: str) -> bool:
    return Hub().matches(name) and not Folder().matches(name)
