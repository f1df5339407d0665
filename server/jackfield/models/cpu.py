"""Faster layers for a CPU.

MLX's scalar ``exp`` takes about 20 ns an element on x86-64, NumPy's vector instructions less than one, so softmax and
SiLU of more than a few elements are NumPy's. Attention multiplies one matrix for each KV head instead of one for each
query head, and all layers share one table of rotations. Measured in docs/performance.md.
"""

import inspect
import sys
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, make_prompt_cache
from numpy.typing import NDArray

from jackfield.models.device import Device

WORTHWHILE = 16384
"""Elements from which on NumPy beats ``mx.exp``, although everything before it has to be computed first."""

LIMIT = 60.0
"""e^-60 vanishes beside 1 in float32. Much smaller weights would too, but their products with values are subnormal
numbers, and a CPU takes a hundred times as long for those."""

CACHED = 65536
"""Elements that stay in a core's second-level cache beside everything else."""


def prepare(model: nn.Module, config: dict[str, Any], device: Device) -> nn.Module:
    """Give a model on a CPU its faster layers; on other devices it stays as it is."""
    del config
    if device.kind != "cpu":
        return model
    module = sys.modules[type(model).__module__]
    # mlx-lm's model classes find these two by name in their own module, and have no other way to be given others.
    for name, faster in (("swiglu", swiglu), ("scaled_dot_product_attention", attention)):
        # Another model of the same class may have brought it here already, and the engine may have wrapped it since.
        if hasattr(module, name) and inspect.unwrap(getattr(module, name)) is not faster:
            setattr(module, name, faster)
    _share_rotations(model)
    return model


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """SiLU(gate) times x, elementwise (arXiv:2002.05202); waits for large ones."""
    if gate.dtype != mx.float32 or gate.size < WORTHWHILE:
        return gate / (1.0 + mx.exp(-gate)) * x
    mx.eval(gate, x)
    gates = np.array(gate, copy=False)
    products = np.clip(gates, -LIMIT, LIMIT)
    np.negative(products, out=products)
    np.exp(products, out=products)
    products += 1.0
    np.divide(gates, products, out=products)
    products *= np.array(x, copy=False)
    return mx.array(products)


def attention(  # noqa: PLR0917 - mlx-lm's signature
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """What mlx-lm's function of that name does, for float32.

    Args:
        queries: [rows, query heads, count, dimension].
        keys: [rows, KV heads, positions, dimension]; quantized ones as packed integers, scales and biases.
        values: likewise.
        cache: the layer's cache; a quantized one tells its bits.
        scale: of the scores.
        mask: bool or additive, broadcast to [rows, heads, count, positions]; ``"causal"``; or None.
        sinks: left to mlx-lm.
    """
    rows, heads, count, dimension = queries.shape
    quantized = hasattr(cache, "bits")
    # MLX's products with quantized matrices are as fast as any for one query, but three times slower for many.
    if sinks is not None or queries.dtype != mx.float32 or (quantized and count == 1):
        left: Any = base.scaled_dot_product_attention
        return cast(mx.array, left(queries, keys, values, cache, scale, mask, sinks))
    if quantized:
        keys, values = _dequantized(keys, cache), _dequantized(values, cache)
    kv_heads, positions = keys.shape[1:3]
    group = heads // kv_heads
    grouped = (queries * scale).reshape(rows, kv_heads, group * count, dimension)
    scores = (grouped @ keys.swapaxes(-1, -2)).reshape(rows, heads, count, positions)
    weights = _softmax(scores, mask).reshape(rows, kv_heads, group * count, positions)
    outputs: mx.array = weights @ values
    return outputs.reshape(rows, heads, count, -1)


def _dequantized(held: tuple[mx.array, mx.array, mx.array], cache: Any) -> mx.array:
    packed, scales, biases = held
    return mx.dequantize(packed, scales, biases, cache.group_size, cache.bits)


def _masked(scores: mx.array, mask: mx.array | str | None) -> mx.array:
    if mask is None:
        return scores
    if isinstance(mask, str):
        count, positions = scores.shape[-2:]
        mask = mx.arange(positions - count, positions)[:, None] >= mx.arange(positions)
    return mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask


def _softmax(scores: mx.array, mask: mx.array | str | None) -> mx.array:
    """Weights [rows, heads, count, positions] from scores, which nobody else may use: their memory is taken over."""
    if scores.size < WORTHWHILE:
        return mx.softmax(_masked(scores, mask), axis=-1)
    causal = isinstance(mask, str)
    if not causal:
        scores = _masked(scores, mask)
    weights = np.array(scores, copy=False)
    count, positions = scores.shape[-2:]
    hidden = np.triu(np.ones((count, count), np.bool_), 1) if causal else None
    # A few rows at a time, which stay in the processor's cache from the first operation to the last.
    few = max(1, CACHED // positions)
    for head in weights.reshape(-1, count, positions):
        if hidden is not None:
            head[:, positions - count :][hidden] = -np.inf
        for start in range(0, count, few):
            _softmax_in_place(head[start : start + few])
    return scores


def _softmax_in_place(scores: NDArray[np.float32]) -> None:
    scores -= scores.max(axis=-1, keepdims=True)
    np.maximum(scores, -LIMIT, out=scores)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


class Rotations:
    """The cosines and sines of rotary position embeddings, worked out once a step for all layers."""

    def __init__(self, dimension: int, base: float, scale: float) -> None:
        exponents = mx.arange(0, dimension, 2, dtype=mx.float32) / dimension
        self._frequencies = scale * mx.power(mx.array(base), -exponents)
        self._offset: Any = None
        self._count = 0
        self._table: tuple[mx.array, mx.array]

    def at(self, offset: int | mx.array, count: int) -> tuple[mx.array, mx.array]:
        """Cosine and sine, [rows or 1, 1, count, dimension / 2], of positions from ``offset`` (an int or [rows]) on."""
        both_numbers = isinstance(offset, int) and isinstance(self._offset, int)
        same = offset == self._offset if both_numbers else offset is self._offset
        if not same or count != self._count:
            first = offset.reshape(-1, 1) if isinstance(offset, mx.array) else mx.array([[offset]])
            angles = (first + mx.arange(count)).astype(mx.float32)[:, None, :, None] * self._frequencies
            self._offset, self._count, self._table = offset, count, (mx.cos(angles), mx.sin(angles))
        return self._table


class SharedRoPE(nn.Module):
    """Rotary position embeddings (arXiv:2104.09864) from a shared table."""

    def __init__(self, rotations: Rotations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # A tuple, since a module takes what it finds in its attributes for parameters or sub-modules.
        self._rotations = (rotations,)

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotate x [rows, heads, count, dimension] by its positions."""
        cosine, sine = self._rotations[0].at(offset, x.shape[2])
        first, second = mx.split(x, 2, axis=-1)
        rotated = mx.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
        return rotated.astype(x.dtype)


def _share_rotations(model: nn.Module) -> None:
    # The table is recognised by the offset object, which other caches than these change in place.
    if not all(type(cache) is KVCache for cache in make_prompt_cache(model)):
        return
    shared: dict[tuple[int, float, float], Rotations] = {}
    for layer in getattr(model, "layers", ()):
        attention_layer = getattr(layer, "self_attn", None)
        rope = getattr(attention_layer, "rope", None)
        if attention_layer is None or type(rope) is not nn.RoPE or rope.traditional:
            continue
        if rope.dims != _head_dimension(attention_layer):
            continue
        key = rope.dims, rope.base, rope.scale
        attention_layer.rope = SharedRoPE(shared.setdefault(key, Rotations(*key)))


def _head_dimension(layer: nn.Module) -> int:
    return round(float(layer.scale) ** -2)
