"""Adapters put onto a model's layers: linear ones, quantized or not, and those of experts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.nn.layers import distributed
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from jackfield.engine.adapters import (
    AdaptedExperts,
    AdaptedLinear,
    Adapters,
    Choice,
    RescaledLinear,
    RoutedExperts,
    SummedLinear,
)
from jackfield.engine.request import Adapter
from jackfield.errors import ModelLoadError
from jackfield.models.adapter_experts import gathered, is_experts, widened
from jackfield.models.adapter_file import AdapterFile, Change
from jackfield.models.division import Division, shape_of

ROWS_AT_ONCE = 4096
"""Rows of a layer's weights that are expanded to 32 bits at a time."""

SUMMING = (distributed.ShardedToAllLinear, distributed.QuantizedShardedToAllLinear)
"""Layers of whose inputs each process has some."""

LINEAR = (
    nn.Linear,
    nn.QuantizedLinear,
    distributed.AllToShardedLinear,
    distributed.QuantizedAllToShardedLinear,
    *SUMMING,
)

Layers = dict[str, Change]

Sum = Callable[[mx.array], mx.array]
"""Adds up what all processes that have a part of a layer's inputs have computed of them; waits for them."""


def install(
    model: nn.Module, files: list[AdapterFile], division: Division | None = None
) -> tuple[Adapters, dict[str, Adapter]]:
    """Put adapters onto ``model``; returns what rows choose with, and each by its name.

    ``division`` says how the model has been divided, if it has been: all processes have to do this at the same time.

    Raises:
        ModelLoadError: one was made for another model.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    whole = division.whole if division else modules
    found = [_checked(file, whole, modules) for file in files]
    ranks = [max(change.rank for change in layers.values()) for layers in found]
    # In a pipeline others have the other layers.
    layers = sorted({layer for one in found for layer in one if layer in modules})
    choice = Choice()
    adapters = Adapters(ranks, choice, _float_type(modules[layers[0]]) if layers else mx.float32)
    for layer in layers:
        changes = [_own(layer, one.get(layer), division) for one in found]
        add = partial(division.summed, layer) if division else _alone
        _replace(model, layer, _adapted(modules[layer], list(zip(ranks, changes, strict=True)), choice, add))
    for block in sorted({_parent(layer) for layer in layers if is_experts(modules[layer])}):
        _replace(model, block, RoutedExperts(modules[block], choice))
    return adapters, {file.name: Adapter(index, file.digest) for index, file in enumerate(files)}


def _checked(file: AdapterFile, whole: Mapping[str, Any], own: Mapping[str, Any]) -> Layers:
    """What the adapter changes, by the model's own names."""
    try:
        layers = gathered(file.layers, whole)
        for layer, change in layers.items():
            _check(layer, whole, change)
            _check_kind(layer, own.get(layer, whole[layer]))
    except ValueError as error:
        raise ModelLoadError(
            f"The adapter {file.name} in {file.folder} was made for another model: {error}.",
            suggestions=("Serve it with the model that it was trained on.",),
        ) from error
    return layers


def _check(layer: str, modules: Mapping[str, Any], change: Change) -> None:
    module = modules.get(layer)
    _check_kind(layer, module)
    if is_experts(module) and not isinstance(modules[_parent(layer)], SwitchGLU | SwitchMLP):
        raise ValueError(f"{layer} belongs to experts of a kind that adapters cannot change here")
    expected, given = shape_of(module), (*change.down.shape[:-1], change.up.shape[-1])
    if expected != given:
        raise ValueError(f"{layer} maps {_words(expected)}, and the adapter maps {_words(given)}")


def _check_kind(layer: str, module: Any) -> None:
    if not is_experts(module) and not isinstance(module, LINEAR):
        raise ValueError(f"{layer} is no linear layer of this model")


def _words(shape: tuple[int, ...]) -> str:
    *experts, inputs, outputs = shape
    return f"{inputs} to {outputs} values{f' in {experts[0]} experts' if experts else ''}"


def _own(layer: str, change: Change | None, division: Division | None) -> Change | None:
    """This process's part of a change."""
    if change is None or division is None:
        return change
    inputs, outputs = division.inputs(layer), division.outputs(layer)
    return Change(
        mx.take(change.down, inputs, axis=-2),
        mx.take(change.up, outputs, axis=-1),
        None if change.magnitude is None else change.magnitude[outputs],
    )


def _float_type(module: Any) -> mx.Dtype:
    """The type that a layer computes in."""
    dtype: mx.Dtype = (module.scales if "scales" in module else module.weight).dtype
    # Some quantizations have scales of 8 bits, which are no numbers to MLX.
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16


def _adapted(module: Any, parts: list[tuple[int, Change | None]], choice: Choice, add: Sum) -> nn.Module:
    """The layer with the adapters side by side; zeros for those that leave it as it is."""
    if isinstance(module, SUMMING):
        part = _adapted(_part(module), parts, choice, add)
        return SummedLinear(part, module.get("bias"), module.group)
    *experts, inputs, outputs = shape_of(module)
    dtype = _float_type(module)
    none = Change(mx.zeros((*experts, inputs, 0)), mx.zeros((*experts, 0, outputs)))
    columns = [widened(change or none, rank, dtype) for rank, change in parts]
    down, up = (
        mx.concatenate([one for one, _ in columns], axis=-1),
        mx.concatenate([one for _, one in columns], axis=-2),
    )
    adapted: Any = (AdaptedExperts if experts else AdaptedLinear)(module, down, up, choice)
    if any(change is not None and change.magnitude is not None for _, change in parts):
        adapted = _rescaled(adapted, module, [change for _, change in parts], choice, add)
    mx.eval(adapted.parameters())
    return adapted  # type: ignore[no-any-return]


def _part(module: Any) -> nn.Module:
    """What a layer that adds up all processes' outputs computes before that."""
    part: nn.Module = nn.Linear(1, 1, bias=False)
    if "scales" in module:
        size, bits, mode = module.group_size, module.bits, module.mode
        part = nn.QuantizedLinear(size, 1, bias=False, group_size=size, bits=bits, mode=mode)
    part.update({name: array for name, array in module.parameters().items() if name != "bias"})
    return part


# DoRA


def _rescaled(
    adapted: AdaptedLinear, module: Any, changes: list[Change | None], choice: Choice, add: Sum
) -> RescaledLinear:
    ones = mx.ones(shape_of(module)[-1])
    factors = mx.stack([*(_factor(module, change, add) if change else ones for change in changes), ones])
    shifts = (1 - factors) * module.bias if "bias" in module else mx.zeros_like(factors)
    dtype = _float_type(module)
    return RescaledLinear(adapted, factors.astype(dtype), shifts.astype(dtype), choice)


def _factor(module: Any, change: Change, add: Sum) -> mx.array:
    """By what the rows of the changed weights, float32, are too short; ones for LoRA."""
    if change.magnitude is None:
        return mx.ones(change.up.shape[1])
    down, up = change.down.astype(mx.float32), change.up.astype(mx.float32)
    squares = []
    for start in range(0, up.shape[1], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        squares.append(mx.square(_weights(module, rows) + (down @ up[:, rows]).T).sum(axis=1))
        mx.eval(squares)
    return change.magnitude.astype(mx.float32) / mx.sqrt(add(mx.concatenate(squares)))


def _alone(squares: mx.array) -> mx.array:
    return squares


def _weights(module: Any, rows: slice) -> mx.array:
    """Some rows of a layer's weights as float32."""
    if "scales" not in module:
        plain: mx.array = module.weight[rows]
        return plain.astype(mx.float32)
    biases = module.get("biases")
    return mx.dequantize(
        module.weight[rows],
        module.scales[rows],
        None if biases is None else biases[rows],
        module.group_size,
        module.bits,
        module.mode,
        module.get("global_scale"),
    ).astype(mx.float32)


# Places


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent: Any = model
    *parents, last = (int(name) if name.isdigit() else name for name in path.split("."))
    for name in parents:
        parent = parent[name]
    parent[last] = module
