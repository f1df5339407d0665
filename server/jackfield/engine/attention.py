"""Attention for a decode batch in several slabs: one after another, and their outputs in one array.

mlx-lm's model classes call ``scaled_dot_product_attention`` by its name in their own module. What stands there, theirs
or a faster one, is wrapped; a cache with several slabs gives the networks opaque objects that only the wrapper opens.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

NAME = "scaled_dot_product_attention"


@dataclass(frozen=True, slots=True)
class BySlab:
    """Keys, values or masks, one for each slab. No array: a network that takes it for one fails, and is found out."""

    parts: Sequence[Any]


def attend_by_slab(model: nn.Module) -> None:
    """Let the network's attention understand :class:`BySlab`; other networks of its module may have done so before."""
    for name in {type(module).__module__ for module in model.modules()}:
        module = sys.modules.get(name)
        attention = getattr(module, NAME, None)
        if attention is not None and not isinstance(attention, SlabAttention):
            setattr(module, NAME, SlabAttention(attention))


class SlabAttention:
    """A function for attention, which with several slabs is called for each."""

    def __init__(self, attention: Callable[..., mx.array]) -> None:
        functools.update_wrapper(self, attention)
        self._attention = attention

    def __call__(  # noqa: PLR0917 - mlx-lm's signature
        self,
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Outputs [rows, heads, count, dimension] for queries of that shape, their rows in the order of the slabs."""
        if not isinstance(keys, BySlab):
            return self._attention(queries, keys, values, cache, scale, mask, sinks)
        outputs, start = [], 0
        for slab_keys, slab_values, slab_mask in zip(keys.parts, values.parts, mask.parts, strict=True):
            end = start + _rows(slab_keys)
            outputs.append(self._attention(queries[start:end], slab_keys, slab_values, cache, scale, slab_mask, sinks))
            start = end
        return mx.concatenate(outputs)


def _rows(keys: mx.array | tuple[mx.array, ...]) -> int:
    """Rows of plain keys, or of quantized ones with their scales and biases."""
    return int((keys if isinstance(keys, mx.array) else keys[0]).shape[0])
