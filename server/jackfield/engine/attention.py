"""Attention for a decode batch in several slabs, and for a prompt's slice: one after another, outputs in one array.

mlx-lm's model classes call ``scaled_dot_product_attention`` by its name in their own module. What stands there, theirs
or a faster one, is wrapped; a cache of several parts gives the networks opaque objects that only the wrapper opens.
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


@dataclass(frozen=True, slots=True)
class Fused:
    """Keys, values or masks of a decode batch and of the prompt slice that shares its step. No array either."""

    batch: Any
    prompt: Any


def attend_by_slab(model: nn.Module) -> None:
    """Let the network's attention open :class:`BySlab` and :class:`Fused`; others of its module may have done so."""
    for name in {type(module).__module__ for module in model.modules()}:
        module = sys.modules.get(name)
        attention = getattr(module, NAME, None)
        if attention is not None and not isinstance(attention, SlabAttention):
            setattr(module, NAME, SlabAttention(attention))


class SlabAttention:
    """A function for attention, which is called for each slab, and for the slice of a prompt."""

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
        if isinstance(keys, Fused):
            decoding, reading = cache.split(queries)
            decoded = self(decoding, keys.batch, values.batch, cache.batch, scale, mask.batch, sinks)
            read = self(reading, keys.prompt, values.prompt, cache.prompt, scale, mask.prompt, sinks)
            fused: mx.array = cache.joined(decoded, read)
            return fused
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
