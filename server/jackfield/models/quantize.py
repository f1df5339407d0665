"""Weights in fewer bits, written as ``mlx_lm.convert`` writes them.

In a process of its own: see the first rule in docs/architecture.md.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from jackfield.errors import ModelLoadError
from jackfield.models import loading
from jackfield.models.folder import check_folder, read_config
from jackfield.models.hub import POOLING
from jackfield.models.progress import Progress
from jackfield.models.store import require_space

SHARD_GB = 2
"""Weights are written in files of this size (GiB): so much of them is in memory at the same time."""
INDEX = "model.safetensors.index.json"
TAKEN = ("*.json", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model", "README.md", "LICENSE*", POOLING)
"""Files that go along as they are; config.json and the weights' index do not."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What is to be written. The arrays are worked out when they are, one by one."""

    arrays: dict[str, mx.array]
    config: dict[str, Any]
    sees: bool
    """Whether it has the tower that reads images, which mlx-lm needs to know when it writes config.json."""

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def quantize(source: Path, target: Path, *, bits: int, group_size: int, progress: Progress) -> None:
    """Fill the folder ``target`` with the model in ``source``, at ``bits`` a weight.

    Raises:
        ModelLoadError: it cannot be served, or quantized, or the disk is too small.
    """
    check_quantizable(source)
    weights = _quantized(source, bits, group_size)
    require_space(target, weights.nbytes)
    with progress.task(f"Quantizing to {bits} bits", weights.nbytes) as task:
        index = {}
        for number, shard in enumerate(_shards(weights), 1):
            for name, array in shard.items():
                mx.eval(array)
                task.advance(array.nbytes)
                index[name] = f"model-{number:05d}.safetensors"
            mx.save_safetensors(str(target / f"model-{number:05d}.safetensors"), shard, metadata={"format": "mlx"})
            shard.clear()
            mx.clear_cache()
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=2), "utf-8")
    _write_config(weights, target)
    _take_along(source, target)


def check_quantizable(folder: Path) -> None:
    """See that the model is whole, and not quantized yet.

    Raises:
        ModelLoadError: it is not.
    """
    check_folder(folder)
    config = read_config(folder)
    found = config.get("quantization") or config.get("quantization_config")
    if found:
        bits = found.get("bits") if isinstance(found, Mapping) else None
        raise ModelLoadError(
            f"The model in {folder} is quantized already{f', to {bits} bits' if bits else ''}.",
            suggestions=(
                "Serve it as it is.",
                "For other bits take the model that it was made from: what is lost once does not come back.",
            ),
        )


def _quantized(source: Path, bits: int, group_size: int) -> Weights:
    model, config = loading._load(source)
    from mlx_lm.utils import quantize_model  # noqa: PLC0415

    with contextlib.redirect_stdout(io.StringIO()):  # it tells the bits a weight
        model, config = quantize_model(model, config, group_size, bits)
    if not any(loading._is_quantized(module) for _, module in model.named_modules()):
        raise ModelLoadError(
            f"None of the layers in {source} can be quantized in groups of {group_size}.",
            suggestions=("Take smaller groups: --group-size 32",),
        )
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return Weights(arrays, config, sees="vision_tower" in getattr(model, "model", {}))


def _shards(weights: Weights) -> list[dict[str, mx.array]]:
    """Groups of arrays, which are then in these groups alone, so that who clears one frees it."""
    from mlx_lm.utils import make_shards  # noqa: PLC0415

    shards: list[dict[str, mx.array]] = make_shards(weights.arrays, SHARD_GB)
    weights.arrays.clear()
    return shards


def _write_config(weights: Weights, target: Path) -> None:
    from mlx_lm.utils import save_config  # noqa: PLC0415

    save_config(dict(weights.config), target / "config.json", keep_vision_config=weights.sees)


def _take_along(source: Path, target: Path) -> None:
    for pattern in TAKEN:
        for file in source.glob(pattern):
            copy = target / file.relative_to(source)
            if not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
