"""What a folder of an adapter looks like from outside."""

from hashlib import blake2b
from pathlib import Path

from jackfield.models.folder import read_json

CONFIG = "adapter_config.json"
MLX, PEFT = "adapters.safetensors", "adapter_model.safetensors"


def weights_file(folder: Path) -> Path | None:
    """The file with its matrices; None if there is none."""
    return next((folder / name for name in (MLX, PEFT) if (folder / name).is_file()), None)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def is_whole(folder: Path) -> bool:
    """Whether both of its files are there."""
    return (folder / CONFIG).is_file() and weights_file(folder) is not None


def adapter_bytes(folder: Path) -> int:
    """What it takes in memory at most, going by its file, whose numbers have 16 bits at least."""
    file = weights_file(folder)
    return 2 * file.stat().st_size if file else 0


def contents_of_adapter(folder: Path) -> str:
    """What its files hold, as a digest in hexadecimal that is the same for copies on other machines."""
    digest = blake2b(digest_size=16)
    for file in (folder / CONFIG, weights_file(folder)):
        if file is not None and file.is_file():
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def base_model(folder: Path) -> str | None:
    """The model that it was trained on, as its config names it."""
    config = read_json(folder / CONFIG)
    found = config.get("base_model_name_or_path") or config.get("model")
    return found if isinstance(found, str) else None
