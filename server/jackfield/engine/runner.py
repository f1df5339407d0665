"""Runs the model: the one place that calls it, and (with kv_cache) the one that knows mlx-lm's caches.

The step loop is our own, on mlx-lm's model classes: its ``BatchGenerator`` keeps full-vocabulary log probabilities
of every row at every step, samples row by row as soon as two requests differ, has no room for masks or seeds, and
changes its interface with every release.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from jackfield.engine.kv_cache import RowKVCache, Rows
from jackfield.engine.logprobs import logprobs, token_events
from jackfield.engine.prefix_cache import Block, restore
from jackfield.engine.request import TokenEvent

Cache = Any
"""One layer's cache: mlx-lm's classes share a protocol but no type."""


class Runner:
    """One model, on the engine thread.

    Args:
        model: an mlx-lm model, called with tokens int32 [rows, count] and one cache a layer; it answers logits
            [rows, count, vocabulary].
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Shapes are known without evaluating anything.
        self.vocabulary: int = model(mx.array([[0]])).shape[-1]
        # Only plain KV caches can be cut into blocks: rotating and recurrent ones hold no position by itself.
        self.shares_prefixes = all(type(cache) is KVCache for cache in make_prompt_cache(model))

    def start(self, blocks: Sequence[Block] = ()) -> list[Cache]:
        """Caches for a new sequence, one a layer, filled with what the prefix cache had."""
        caches: list[Cache] = make_prompt_cache(self.model)
        if blocks:
            restore(blocks, caches)
        return caches

    def prefill(self, caches: list[Cache], tokens: Sequence[int]) -> None:
        """Add ``tokens`` to ``caches``; returns when that has happened."""
        # Only the caches are evaluated, so the output head is never computed for the prompt.
        self.model(mx.array([list(tokens)]), cache=caches)
        mx.eval([cache.state for cache in caches])
        # A slice's activations are much larger than a step's: their buffers are of no use to the next one.
        mx.clear_cache()

    def score(self, caches: list[Cache], tokens: Sequence[int], following: Sequence[int], top: int) -> list[TokenEvent]:
        """Like :meth:`prefill`, and tells how likely each token of ``following`` was after the one in ``tokens``."""
        logits = self.model(mx.array([list(tokens)]), cache=caches)[0]
        scores = logprobs(logits, mx.array(list(following)), top)
        mx.eval([cache.state for cache in caches], scores)
        mx.clear_cache()
        return token_events(following, scores)

    def decode(self, tokens: mx.array, caches: "CacheBatch") -> mx.array:
        """Logits [rows, vocabulary] after one more token a row; starts the work and does not wait for it."""
        logits: mx.array = self.model(tokens[:, None], cache=caches.layers)[:, -1]
        caches.rows.advance(1)
        mx.async_eval(logits)
        return logits


class CacheBatch:
    """The caches of all rows of a decode batch, one object a layer."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.layers: list[Cache] = []

    def join(self, caches: Sequence[Cache], length: int) -> None:
        """Take over one sequence's caches, which hold ``length`` positions, as the last row."""
        if not self.layers:
            self.layers = [RowKVCache(self.rows) if type(cache) is KVCache else None for cache in caches]
        for index, cache in enumerate(caches):
            if isinstance(self.layers[index], RowKVCache):
                self.layers[index].extend(cache)
            elif self.layers[index] is None:
                self.layers[index] = cache.merge([cache])
            else:
                self.layers[index].extend(cache.merge([cache]))
        self.rows.append(length)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        for layer in self.layers:
            if indices:
                layer.filter(list(indices))
        self.rows.keep(indices)
        if not indices:
            self.layers = []

    def extract(self, row: int) -> list[Cache]:
        """One row's caches, one a layer."""
        return [layer.extract(row) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return sum(layer.nbytes for layer in self.layers)
