"""Faster layers for a CPU: the same functions, built from operations that MLX's CPU backend is good at.

MLX's scalar ``exp`` takes about 20 ns an element on x86-64, its multiplications half a nanosecond, so a polynomial in
a dozen cheap operations is four times as fast. Attention multiplies one matrix for each KV head instead of one for
each query head, and all layers share one table of rotations. Measured in docs/performance.md.
"""

import inspect
import sys
from typing import Any, cast

import mlx.core as mx
from mlx import nn
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, make_prompt_cache

from jackfield.models.device import Device

WORTHWHILE = 8192
"""Elements from which on the polynomial beats ``mx.exp``, whose one call costs less than a dozen."""

LIMIT = 60.0
"""e^-60 vanishes beside 1 in float32. Much smaller weights would too, but their products with values are subnormal
numbers, and a CPU takes a hundred times as long for those."""

_EXP2 = (1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1)
_LN2, _LOG2_E = 6.931472028550421e-1, 1.4426950408889634


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


def exp(x: mx.array) -> mx.array:
    """e^x for float32 within 4e-6 of its value; arguments beyond ``LIMIT`` count as the limit.

    2^x by a power of two from the exponent's bits and a polynomial for the rest (Cephes' exp2f, |rest| <= 1/2).
    """
    if x.dtype != mx.float32 or x.size < WORTHWHILE:
        return mx.exp(x)
    scaled = mx.clip(x, -LIMIT, LIMIT) * _LOG2_E
    # The conversion cuts towards zero, which rounds to nearest once everything is positive.
    exponent = (scaled + 127.5).astype(mx.int32)
    rest = scaled - (exponent.astype(mx.float32) - 127.0)
    polynomial = rest * _EXP2[0] + _EXP2[1]
    for coefficient in (*_EXP2[2:], _LN2, 1.0):
        polynomial = polynomial * rest + coefficient
    return polynomial * (exponent << 23).view(mx.float32)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """SiLU(gate) times x, elementwise (arXiv:2002.05202)."""
    return gate / (1.0 + exp(-gate)) * x


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
    weights = _softmax(_masked(scores, mask)).reshape(rows, kv_heads, group * count, positions)
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


def _softmax(scores: mx.array) -> mx.array:
    if scores.size < WORTHWHILE:
        return mx.softmax(scores, axis=-1)
    weights = exp(scores - mx.max(scores, axis=-1, keepdims=True))
    return weights / mx.sum(weights, axis=-1, keepdims=True)


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
