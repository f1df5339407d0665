"""Adapters in their folders: LoRA and DoRA as mlx-lm and PEFT write them.

========= ==================================================================================================
mlx-lm    ``adapters.safetensors``: ``LAYER.lora_a`` [inputs, rank], ``LAYER.lora_b`` [rank, outputs] and, of
          DoRA, ``LAYER.m`` [outputs]; of experts ``lora_a`` [experts, rank, inputs] and ``lora_b`` [experts,
          outputs, rank]. ``adapter_config.json``: ``lora_parameters.scale`` (``mlx_lm/tuner/``)
PEFT      ``adapter_model.safetensors``: ``base_model.model.LAYER.lora_A.weight`` [rank, inputs],
          ``lora_B.weight`` [outputs, rank] and ``lora_magnitude_vector`` [outputs]; ``adapter_config.json``:
          ``lora_alpha``, ``r``, ``use_rslora``, ``rank_pattern``, ``alpha_pattern``
          (huggingface.co/docs/peft, "LoRA" and "PEFT checkpoint format")
========= ==================================================================================================
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import mlx.core as mx
import regex

from jackfield.errors import ModelLoadError
from jackfield.models.adapter_folder import CONFIG, MLX, PEFT, weights_file
from jackfield.models.folder import read_json

MLX_NAME = re.compile(r"(?P<layer>.+)\.(lora_(?P<half>[ab])|(?P<magnitude>m))")
PEFT_NAME = re.compile(
    r"base_model\.model\.(?P<layer>.+)\.(lora_(?P<half>[AB])\.weight|(?P<magnitude>lora_magnitude_vector)(\.weight)?)"
)
INSIDE = ".base_layer"
"""What PEFT puts into names where one wrapper of a parameter is inside of another."""

UNKNOWN = ("alora_invocation_tokens", "use_qalora", "use_bdlora", "layer_replication", "arrow_config", "kasa_config")
"""PEFT's options that make an adapter something else than LoRA or DoRA."""
RESIDUAL = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""PEFT's ways to begin that change the model's own weights too."""
DAMAGED = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, OSError)
"""What comes of files that are not as they should be."""
PATTERN_SECONDS = 1.0
"""A regular expression of a file's that takes longer is refused."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter does to a layer."""

    down: mx.array
    """[inputs, rank]; of experts [experts, inputs, rank]."""
    up: mx.array
    """[rank, outputs]; of experts [experts, rank, outputs]; the scale is in it."""
    magnitude: mx.array | None = None
    """[outputs], of DoRA: how long each row of the changed weights is to be."""

    @property
    def rank(self) -> int:
        """Its columns."""
        return self.down.shape[-1]


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What a folder holds."""

    name: str
    folder: Path
    layers: Mapping[str, Change]
    """By the layer's path in the model."""
    digest: bytes
    """16 bytes that stand for the contents."""


def read_adapter(name: str, folder: Path) -> AdapterFile:
    """The adapter in ``folder``, which clients call ``name``. Runs on the engine's thread.

    Raises:
        ModelLoadError: there is none, it is damaged, or of a kind that is not known here.
    """
    config, file = read_json(folder / CONFIG), weights_file(folder)
    if not config or file is None:
        raise ModelLoadError(
            f"There is no adapter in {folder}: it has to hold {CONFIG}, and {MLX} or {PEFT}.",
            suggestions=("Check the path.", "Pickles (adapter_model.bin) are not read: save it as safetensors."),
        )
    try:
        _check_kind(config)
        arrays: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
        layers = _mlx_layers(arrays, config) if file.name == MLX else _peft_layers(arrays, config)
        digest = blake2b(file.read_bytes() + json.dumps(config, sort_keys=True).encode(), digest_size=16).digest()
    except (*DAMAGED, regex.error) as error:
        raise ModelLoadError(
            f"The adapter {name} in {folder} cannot be used: {error}",
            suggestions=("Train it as LoRA or DoRA on linear layers.", "If it is that, save or download it again."),
        ) from error
    return AdapterFile(name, folder, layers, digest)


def _check_kind(config: Mapping[str, Any]) -> None:
    kind = config.get("fine_tune_type") or config.get("peft_type") or "lora"
    if str(kind).lower() not in ("lora", "dora"):
        raise ValueError(f"it is of the kind {kind!r}, and only LoRA and DoRA are known here")
    if found := next((option for option in UNKNOWN if config.get(option)), None):
        raise ValueError(f"{found} is not known here")
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(RESIDUAL):
        raise ValueError(
            f"it began as {begun}, which changes the model's own weights too; PEFT can save it as plain LoRA"
        )


Parts = dict[str, dict[str, mx.array]]
"""Layer -> a, b and m, as far as the file has them."""


def _parts(arrays: Mapping[str, mx.array], pattern: re.Pattern[str]) -> Parts:
    parts: Parts = defaultdict(dict)
    for name, array in arrays.items():
        match = pattern.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no part of LoRA or DoRA on a linear layer")
        parts[match["layer"]]["m" if match["magnitude"] else match["half"].lower()] = array
    if not parts:
        raise ValueError("it holds nothing")
    return parts


def _change(
    layer: str, part: Mapping[str, mx.array], scale: float, *, dora: bool, dimensions: tuple[int, ...]
) -> Change:
    """The parts of a layer put together, with inputs first."""
    if ("m" in part) != dora:
        raise ValueError(f"{layer} has {'no magnitude' if dora else 'a magnitude'}, which {CONFIG} says otherwise of")
    if not {"a", "b"} <= part.keys() or part["a"].ndim not in dimensions:
        raise ValueError(f"the halves of {layer} do not fit together")
    down, up, magnitude = part["a"], part["b"], part.get("m")
    if down.shape[-1] != up.shape[-2] or down.shape[:-2] != up.shape[:-2]:
        raise ValueError(f"the halves of {layer} do not fit together")
    if magnitude is not None and magnitude.shape != up.shape[1:]:
        raise ValueError(f"{layer} has {magnitude.size} magnitudes for {up.shape[-1]} outputs")
    return Change(down, up * scale, magnitude)


# mlx-lm


def _mlx_layers(arrays: Mapping[str, mx.array], config: Mapping[str, Any]) -> dict[str, Change]:
    scale, dora = float(config["lora_parameters"]["scale"]), config.get("fine_tune_type") == "dora"
    change = partial(_change, scale=scale, dora=dora, dimensions=(2, 3))
    return {layer: change(layer, _inputs_first(part)) for layer, part in _parts(arrays, MLX_NAME).items()}


def _inputs_first(part: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Experts' matrices are the other way round than those of linear layers."""
    return {name: array.swapaxes(1, 2) if array.ndim == 3 else array for name, array in part.items()}


# PEFT


def _peft_layers(arrays: Mapping[str, mx.array], config: Mapping[str, Any]) -> dict[str, Change]:
    dora = bool(config.get("use_dora"))
    named = {_parameter(layer, config): part for layer, part in _parts(arrays, PEFT_NAME).items()}
    return {
        # torch's layers have their outputs first.
        layer: _change(
            layer,
            {name: array.T for name, array in part.items()},
            _scale(config, layer),
            dora=dora,
            dimensions=(2,),
        )
        for layer, part in named.items()
    }


def _scale(config: Mapping[str, Any], layer: str) -> float:
    """What the product of both halves is multiplied by."""
    rank = int(_matching(config.get("rank_pattern") or {}, layer, config["r"]))
    alpha = float(_matching(config.get("alpha_pattern") or {}, layer, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matching(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """The value of the first pattern that means the layer (PEFT's ``get_pattern_key``).

    Raises:
        TimeoutError: a pattern takes for ever.
    """
    for pattern, value in patterns.items():
        if regex.fullmatch(rf"(.*\.)?({pattern})", layer, timeout=PATTERN_SECONDS):
            return value
    return default


def _parameter(layer: str, config: Mapping[str, Any]) -> str:
    """The name of what a wrapper changes: all experts' matrices in one parameter are named by their place alone.

    PEFT wraps the parameters of a module in the order in which it has them, ``gate_up_proj`` first.
    """
    names = {str(name).rpartition(".")[2] for name in config.get("target_parameters") or ()}
    fused = [name for name in ("gate_up_proj", "down_proj") if name in names]
    if not layer.removesuffix(INSIDE).endswith(".experts") or not fused:
        return layer
    return f"{layer.removesuffix(INSIDE)}.{fused[0] if layer.endswith(INSIDE) else fused[-1]}"
