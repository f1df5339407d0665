"""From tokens to vectors: the network's last hidden states, those of each text pooled to one vector."""

import logging
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from jackfield.engine.request import Pooling

logger = logging.getLogger(__name__)

INNER = ("language_model", "model", "transformer", "backbone")
"""What mlx-lm's classes call the network that is inside another one."""


class Pooler:
    """The network without its output head, on the engine thread.

    Args:
        network: called with tokens int32 [rows, count] and perhaps one cache a layer; it answers hidden states
            [rows, count, width], normalized as the head would get them.
        width: of the hidden states.
    """

    def __init__(self, network: Any, width: int) -> None:
        self._network = network
        self.width = width

    @classmethod
    def find(cls, model: nn.Module, vocabulary: int) -> "Pooler | None":
        """The one for a model with so many logits; None if its classes keep the head and the rest in one."""
        network: Any = model
        while (network := _inside(network)) is not None:
            width = _width(network)
            if width not in (None, vocabulary):
                return cls(network, width)
        logger.info("hidden states cannot be had, so there will be no embeddings")
        return None

    def __call__(
        self, inputs: Sequence[Sequence[int]], pooling: Pooling, caches: list[Any] | None = None
    ) -> NDArray[np.float32]:
        """The sum of each input's hidden states, or their last one: [inputs, width].

        ``caches``, one a layer, hold what came before a single input, and afterwards the input too.
        """
        lengths = mx.array([len(tokens) for tokens in inputs])
        # What fills up a row comes after it, where causal attention does not look.
        longest = max(map(len, inputs))
        rows = mx.array([[*tokens, *[0] * (longest - len(tokens))] for tokens in inputs])
        pooled = _pooled(self._network(rows, cache=caches), lengths, pooling)
        mx.eval(pooled, [cache.state for cache in caches or ()])
        found = np.array(pooled)
        # As after a slice of a prompt: nothing else needs buffers of these sizes.
        mx.clear_cache()
        return found


def _pooled(states: mx.array, lengths: mx.array, pooling: Pooling) -> mx.array:
    if pooling == "last":
        return states[mx.arange(len(lengths)), lengths - 1].astype(mx.float32)
    within = mx.arange(states.shape[1]) < lengths[:, None]
    return mx.sum(mx.where(within[..., None], states.astype(mx.float32), 0.0), axis=1)


def _inside(network: Any) -> Any:
    return next((found for name in INNER if (found := getattr(network, name, None)) is not None), None)


def _width(network: Any) -> int | None:
    """Of what a network answers; None if that is nothing like hidden states. Nothing is evaluated."""
    try:
        states = network(mx.array([[0, 0]]), cache=None)
    except Exception as error:  # a mere container, for one
        logger.debug("%s is not called like a network: %s", type(network).__name__, error)
        return None
    return int(states.shape[-1]) if isinstance(states, mx.array) and states.ndim == 3 else None
