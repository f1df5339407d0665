"""Folders in MLX's or Hugging Face's layout: config.json, model*.safetensors, tokenizer files."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jackfield.errors import ModelLoadError
from jackfield.models.older_words import older_words
from jackfield.models.progress import Progress

PATH_STARTS = ("/", "./", "../", "~")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class Folder:
    """The source of names that are paths of folders."""

    def matches(self, name: str) -> bool:
        """Whatever exists or can only be a path."""
        return name.startswith(PATH_STARTS) or (name != "" and _path(name).exists())

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        """The folder itself, checked."""
        folder = _path(name)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ModelLoadError(
                f"The model folder {folder} {what}.",
                suggestions=(
                    "Check the path.",
                    "Of files only GGUF files can be served, with names that end in .gguf.",
                ),
            )
        check_folder(folder)
        return folder


def _path(name: str) -> Path:
    return Path(name).expanduser()


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """See that the files of a model are there and need no code of their own; or that config.json is, without weights.

    Raises:
        ModelLoadError: they are not, or do.
    """
    config = read_config(folder)
    if (code := config.get("model_file")) is not None:
        raise ModelLoadError(
            f"The model in {folder} brings its own code ({code}), which is not run here.",
            suggestions=("Take a conversion of the model to an architecture that mlx-lm has itself.",),
        )
    if not weights:
        return
    _check_weights(folder)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ModelLoadError(
            f"The model in {folder} has no tokenizer.", suggestions=("Copy the original model's tokenizer.json there.",)
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file.

    Raises:
        ModelLoadError: the file is damaged.
    """
    try:
        content = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}.", suggestions=("Download the model again.",)) from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file} holds no JSON object.", suggestions=("Download the model again.",))
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` in the words that mlx-lm reads, with at least a ``model_type``."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelLoadError(
            f"{folder} is not a model folder: it has no config.json.",
            suggestions=(
                "Name the folder or repository that holds config.json and model*.safetensors.",
                "Of what holds only .gguf files, name one: FOLDER/FILE.gguf, or ORG/NAME:FILE.gguf on the Hub.",
            ),
        ) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}.", suggestions=("Download the model again.",)) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelLoadError(
            f"{file} does not say what model it is (model_type).", suggestions=("Download the model again.",)
        )
    return config | older_words(config)


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if missing := sorted(path.name for path in _indexed(index) if not path.exists()):
        raise ModelLoadError(
            f"The model in {folder} is incomplete: {len(missing)} files are missing, for example {missing[0]}.",
            suggestions=("Download the model again.",),
        )
    if not any(folder.glob("model*.safetensors")):
        others = "It has PyTorch weights, which can hold code and are not read. " if any(folder.glob("*.bin")) else ""
        raise ModelLoadError(
            f"The model in {folder} has no model*.safetensors. {others}".strip(),
            suggestions=(f"Convert it: mlx_lm.convert --hf-path {folder} --mlx-path NEW_FOLDER",),
        )


def _indexed(index: Path) -> set[Path]:
    """The weight files that an index names; none if there is no index."""
    try:
        return {index.parent / name for name in json.loads(index.read_bytes())["weight_map"].values()}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{index} cannot be read.", suggestions=("Download the model again.",)) from error


def contents_of(folder: Path) -> str:
    """What is in a model's folder, as a digest in hexadecimal that is the same for copies on other machines.

    Of weight files it takes names and sizes, of the small ones (configuration, tokenizer) what they contain.
    """
    digest = blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".jinja", ".txt", ".model"}:
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()
