"""Adapters of experts, by the names that mlx-lm has for them: all experts' matrices in one layer.

PEFT has a layer for each, ``mlp.experts.3.up_proj``, or two parameters for all: ``mlp.experts.gate_up_proj`` [experts,
outputs of gate and up, inputs] and ``mlp.experts.down_proj``. In a parameter's adapter the matrices of all experts lie
side by side: ``lora_A`` is [experts * rank, inputs], ``lora_B`` [outputs, rank * experts], and the experts come first
in the one and last in the other (``ParamWrapper`` in peft's ``tuners/lora/layer.py``).
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from jackfield.models.adapter_file import Change

EXPERT = re.compile(r"(?P<block>.+)\.experts\.(?P<expert>\d+)\.(?P<part>gate_proj|up_proj|down_proj)")
FUSED = re.compile(r"(?P<block>.+)\.experts\.(?P<part>gate_up_proj|down_proj)")


def is_experts(module: Any) -> bool:
    """Whether a layer has a matrix for each of its experts."""
    return isinstance(module, SwitchLinear | QuantizedSwitchLinear)


def gathered(layers: Mapping[str, Change], modules: Mapping[str, Any]) -> dict[str, Change]:
    """An adapter's layers as the model names them.

    Raises:
        ValueError: experts are missing in the model, or changed in a way that does not fit it.
    """
    found: dict[str, Change] = {}
    single: dict[str, dict[int, Change]] = defaultdict(dict)
    for name, change in layers.items():
        if match := _match(EXPERT, name, modules):
            single[_layer(match)][int(match["expert"])] = change
        elif match := _match(FUSED, name, modules):
            found |= _unfused(match, change, modules)
        else:
            found[name] = change
    return found | {layer: _stacked(layer, changes, modules[layer]) for layer, changes in single.items()}


def _match(pattern: re.Pattern[str], name: str, modules: Mapping[str, Any]) -> re.Match[str] | None:
    """What the name says, if the model has such experts under mlx-lm's name."""
    match = pattern.fullmatch(name)
    return match if match and is_experts(modules.get(f"{match['block']}.switch_mlp.down_proj")) else None


def _layer(match: re.Match[str]) -> str:
    return f"{match['block']}.switch_mlp.{match['part']}"


def _stacked(layer: str, changes: Mapping[int, Change], module: Any) -> Change:
    """One change for all experts, with zeros for those that stay as they are."""
    one = next(iter(changes.values()))
    if max(changes) >= module.num_experts or any(change.magnitude is not None for change in changes.values()):
        raise ValueError(f"{layer} has {module.num_experts} experts, which can be changed by LoRA alone")
    rank = max(change.rank for change in changes.values())
    none = Change(mx.zeros((one.down.shape[0], 0)), mx.zeros((0, one.up.shape[1])))
    padded = [widened(changes.get(expert, none), rank, one.down.dtype) for expert in range(module.num_experts)]
    return Change(mx.stack([down for down, _ in padded]), mx.stack([up for _, up in padded]))


def widened(change: Change, rank: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Both matrices with as many columns as ``rank`` says."""
    missing = rank - change.rank
    side = [(0, 0)] * (change.down.ndim - 2)
    down = mx.pad(change.down.astype(dtype), [*side, (0, 0), (0, missing)])
    return down, mx.pad(change.up.astype(dtype), [*side, (0, missing), (0, 0)])


def _unfused(match: re.Match[str], change: Change, modules: Mapping[str, Any]) -> dict[str, Change]:
    experts = modules[f"{match['block']}.switch_mlp.down_proj"].num_experts
    if change.magnitude is not None or change.rank % experts:
        raise ValueError(f"{match[0]} has {experts} experts, and the adapter has {change.rank} columns for them")
    inputs, outputs = change.down.shape[0], change.up.shape[1]
    down = change.down.T.reshape(experts, -1, inputs).swapaxes(1, 2)
    up = change.up.reshape(-1, experts, outputs).swapaxes(0, 1)
    if match["part"] == "down_proj":
        return {_layer(match): Change(down, up)}
    gate, other = mx.split(up, 2, axis=-1)
    block = f"{match['block']}.switch_mlp"
    return {f"{block}.gate_proj": Change(down, gate), f"{block}.up_proj": Change(down, other)}
