"""Adapters from their folders: LoRA as mlx-lm and PEFT write it, put onto a model's linear layers.

========= ==================================================================================================
mlx-lm    ``adapters.safetensors``: ``LAYER.lora_a`` [inputs, rank] and ``LAYER.lora_b`` [rank, outputs];
          ``adapter_config.json``: ``lora_parameters.scale`` (``mlx_lm/tuner/utils.py``)
PEFT      ``adapter_model.safetensors``: ``base_model.model.LAYER.lora_A.weight`` [rank, inputs] and
          ``lora_B.weight`` [outputs, rank]; ``adapter_config.json``: ``lora_alpha``, ``r``, ``use_rslora``
          (huggingface.co/docs/peft, "LoRA")
========= ==================================================================================================
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from jackfield.engine.adapters import AdaptedLinear, Adapters, Choice
from jackfield.engine.request import Adapter
from jackfield.errors import ModelLoadError
from jackfield.models.folder import read_json

CONFIG = "adapter_config.json"
MLX, PEFT = "adapters.safetensors", "adapter_model.safetensors"
MLX_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[ab])")
PEFT_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")

Halves = tuple[mx.array, mx.array]
"""[inputs, rank] and [rank, outputs], the scale in the second one."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What a folder holds."""

    name: str
    folder: Path
    layers: Mapping[str, Halves]
    """By the layer's path in the model."""
    digest: bytes
    """16 bytes that stand for the contents."""

    @property
    def rank(self) -> int:
        """The most columns that it has in a layer."""
        return max(down.shape[1] for down, _ in self.layers.values())


def adapter_bytes(folder: Path) -> int:
    """What it takes in memory at most, going by its file, whose numbers have 16 bits at least."""
    return sum(2 * file.stat().st_size for file in map(folder.expanduser().joinpath, (MLX, PEFT)) if file.is_file())


def read_adapter(name: str, folder: Path) -> AdapterFile:
    """The adapter in ``folder``, which clients call ``name``. Runs on the engine's thread.

    Raises:
        ModelLoadError: there is none, it is damaged, or of a kind that is not known here.
    """
    config = read_json(folder / CONFIG)
    file = next((folder / file for file in (MLX, PEFT) if (folder / file).is_file()), None)
    if not config or file is None:
        raise ModelLoadError(
            f"There is no adapter in {folder}: it has to hold {CONFIG}, and {MLX} or {PEFT}.",
            suggestions=("Check the path.", "Pickles (adapter_model.bin) are not read: save it as safetensors."),
        )
    try:
        arrays: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
        layers = _layers(arrays, _scale(config), MLX_NAME if file.name == MLX else PEFT_NAME)
        digest = blake2b(file.read_bytes() + repr(_scale(config)).encode(), digest_size=16).digest()
    except (RuntimeError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelLoadError(
            f"The adapter {name} in {folder} cannot be used: {error}",
            suggestions=("Train it as plain LoRA on linear layers.", "If it is one, save or download it again."),
        ) from error
    return AdapterFile(name, folder, layers, digest)


def _scale(config: Mapping[str, Any]) -> float:
    """What the product of both halves is multiplied by."""
    if (kind := config.get("fine_tune_type", "lora")) != "lora":
        raise ValueError(f"it is of the kind {kind!r}, and only 'lora' is known here")
    if config.get("use_dora"):
        raise ValueError("DoRA is not known here")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError("ranks and scales that differ by layer are not known here")
    if "lora_parameters" in config:
        return float(config["lora_parameters"]["scale"])
    rank = int(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _layers(arrays: Mapping[str, mx.array], scale: float, pattern: re.Pattern[str]) -> dict[str, Halves]:
    halves: dict[str, dict[str, mx.array]] = defaultdict(dict)
    for name, array in arrays.items():
        match = pattern.fullmatch(name)
        if match is None or array.ndim != 2:
            raise ValueError(f"{name!r} is no part of LoRA on a linear layer")
        # PEFT's layers are torch's, with their outputs first.
        halves[match["layer"]][match["half"].lower()] = array.T if pattern is PEFT_NAME else array
    if not halves:
        raise ValueError("it holds nothing")
    for layer, pair in halves.items():
        if pair.keys() != {"a", "b"} or pair["a"].shape[1] != pair["b"].shape[0]:
            raise ValueError(f"the halves of {layer} do not fit together")
    return {layer: (pair["a"], pair["b"] * scale) for layer, pair in halves.items()}


def install(model: nn.Module, files: list[AdapterFile]) -> tuple[Adapters, dict[str, Adapter]]:
    """Put adapters onto ``model``; returns what rows choose with, and each by its name.

    Raises:
        ModelLoadError: one was made for another model.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    layers = sorted({layer for file in files for layer in file.layers})
    for file in files:
        for layer, halves in file.layers.items():
            _check(file, layer, modules.get(layer), halves)
    choice = Choice()
    dtype = _float_type(modules[layers[0]])
    for layer in layers:
        _replace(
            model, layer, _adapted(modules[layer], [(file.rank, file.layers.get(layer)) for file in files], choice)
        )
    adapters = Adapters([file.rank for file in files], choice, dtype)
    return adapters, {file.name: Adapter(index, file.digest) for index, file in enumerate(files)}


def _check(file: AdapterFile, layer: str, module: Any, halves: Halves) -> None:
    expected = _shape(module) if isinstance(module, nn.Linear | nn.QuantizedLinear) else None
    given = halves[0].shape[0], halves[1].shape[1]
    if expected != given:
        what = f"maps {expected[0]} to {expected[1]} values" if expected else "is no linear layer of this model"
        raise ModelLoadError(
            f"The adapter {file.name} in {file.folder} was made for another model: {layer} {what}, "
            f"and the adapter maps {given[0]} to {given[1]}.",
            suggestions=("Serve it with the model that it was trained on.",),
        )


def _shape(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    outputs, inputs = module.weight.shape
    return (inputs * 32 // module.bits if isinstance(module, nn.QuantizedLinear) else inputs), outputs


def _float_type(module: Any) -> mx.Dtype:
    """The type that a layer computes in."""
    dtype: mx.Dtype = module.scales.dtype if isinstance(module, nn.QuantizedLinear) else module.weight.dtype
    return dtype


def _adapted(module: Any, parts: list[tuple[int, Halves | None]], choice: Choice) -> AdaptedLinear:
    """The layer with the adapters side by side; zeros for those that leave it as it is."""
    inputs, outputs = _shape(module)
    dtype = _float_type(module)
    downs, ups = [], []
    for rank, halves in parts:
        down, up = halves or (mx.zeros((inputs, 0)), mx.zeros((0, outputs)))
        missing = rank - down.shape[1]
        downs += [down.astype(dtype), mx.zeros((inputs, missing), dtype)]
        ups += [up.astype(dtype), mx.zeros((missing, outputs), dtype)]
    adapted = AdaptedLinear(module, mx.concatenate(downs, axis=1), mx.concatenate(ups), choice)
    mx.eval(adapted.down, adapted.up)
    return adapted


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent: Any = model
    *parents, last = (int(name) if name.isdigit() else name for name in path.split("."))
    for name in parents:
        parent = parent[name]
    parent[last] = module
