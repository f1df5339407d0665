"""Runs the model: the one place that calls it, and (with kv_cache) the one that knows mlx-lm's caches.

The step loop is our own, on mlx-lm's model classes: its ``BatchGenerator`` keeps full-vocabulary log probabilities
of every row at every step, samples row by row as soon as two requests differ, has no room for masks or seeds, and
changes its interface with every release.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache, make_prompt_cache
from numpy.typing import NDArray

from jackfield.engine.adapters import NONE, Adapters
from jackfield.engine.attention import attend_by_slab
from jackfield.engine.images import ImageEncoder
from jackfield.engine.kv_cache import (
    FusedKVCache,
    PromptSlice,
    RowKVCache,
    Rows,
    arrays,
    given_up,
    grow,
    is_plain,
    row_cache,
)
from jackfield.engine.logprobs import logprobs, token_events
from jackfield.engine.pooling import Pooler
from jackfield.engine.request import Pooling, PromptImage, TokenEvent
from jackfield.engine.slab import ONE_SLAB, Arrays, Row, SlabSizes
from jackfield.engine.trials import Judge, alone
from jackfield.errors import ModelLoadError

Cache = Any
"""One layer's cache: mlx-lm's classes share a protocol but no type."""

TOLERANCE = 0.05
"""Of the logits' norm: rounding in 16 bits stays well below, attention to the wrong positions does not."""


class Runner:
    """One model, on the engine thread.

    Args:
        model: an mlx-lm model, called with tokens int32 [rows, count] and one cache a layer; it answers logits
            [rows, count, vocabulary].
        kv_bits: 8 or 4 to quantize keys and values; None keeps them as the model makes them.
        kv_group_size: elements of a head that share a scale; 32 is taken where this does not divide the heads.
        sizes: which rows of a decode batch share a slab.
        images: makes embeddings of images, if the model reads them.
        adapters: that the model's layers have been given.
        judge: makes trials, of which the others in a group learn.
        layers: how many count, if another process of a group has more of the same kind.

    Raises:
        ModelLoadError: the model's keys and values cannot be quantized.
    """

    def __init__(
        self,
        model: nn.Module,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
        sizes: SlabSizes = SlabSizes(),  # noqa: B008 - frozen
        *,
        images: ImageEncoder | None = None,
        adapters: Adapters = NONE,
        judge: Judge = alone,
        layers: int | None = None,
    ) -> None:
        self.model = model
        self.adapters = adapters
        self.images = images
        attend_by_slab(model)
        self._quantization = (_group_size(model, kv_group_size), kv_bits) if kv_bits else None
        sample = self.start()
        self._layers, self._own_layers = layers or len(sample), len(sample)
        self.vocabulary: int = self._first(sample).shape[-1]
        self.pooler = Pooler.find(model, self.vocabulary)
        """Makes vectors of texts, if the network's hidden states can be had."""
        self.bytes_per_token = sum(map(_growing_bytes, sample))
        """Bytes that one more position of a row takes, in all layers."""
        self._fixed_bytes = sum(map(_fixed_bytes, sample))
        self._nested_bytes = sum(_growing_bytes(cache) for cache in sample if not is_plain(cache))
        self._empty = [_empty(cache) for cache in sample]
        self.ragged = judge("rows of all lengths share one rectangle", lambda: self._attends_by_slab(sample))
        """Whether rows lie in slabs with others of their length; otherwise each takes as much as the longest."""
        self._sizes = sizes if self.ragged else ONE_SLAB
        # Apart from each other: in a pipeline some have layers of other kinds, and the trial needs everybody.
        plain = self.ragged and judge("prompts are read between steps", lambda: all(map(is_plain, sample)))
        self.fuses = plain and judge("prompts are read between steps", self._fuses)
        """Whether a slice of a prompt can share a step of the decode batch."""

    def start(self) -> list[Cache]:
        """Empty caches for a new sequence, one a layer."""
        caches: list[Cache] = make_prompt_cache(self.model)
        if self._quantization is None:
            return caches
        return [QuantizedKVCache(*self._quantization) if type(cache) is KVCache else cache for cache in caches]

    def batch(self) -> "CacheBatch":
        """The caches of an empty decode batch."""
        return CacheBatch(self.start(), self._empty, self._sizes, self._other_bytes)

    def reserve(self, caches: Sequence[Cache], positions: int) -> None:
        """Make room for a sequence of so many positions, so that its caches need not be copied while it is read."""
        for cache, empty in zip(caches, self._empty, strict=True):
            if empty:
                grow(cache, empty, self._sizes.round_up(positions))

    def counted(self, nbytes: int) -> int:
        """Bytes of all layers as they count: a group's processes count those of the one that has the most."""
        return nbytes // self._own_layers * self._layers

    def _other_bytes(self, rows: int, longest: int) -> int:
        """Bytes of the layers whose caches are batched by mlx-lm, with so many rows of up to ``longest`` positions."""
        return rows * (self._sizes.round_up(longest) * self._nested_bytes + self._fixed_bytes)

    @property
    def image_token_bytes(self) -> int:
        """Bytes that an image takes for each of its tokens while it is read."""
        return 0 if self.images is None else self.images.bytes_per_token

    def row_bytes(self, length: int) -> int:
        """Bytes that a row of ``length`` positions takes in the decode batch, those of other kinds of layers included.

        In a batch that is not ragged, every row takes as much as the longest.
        """
        room = self._sizes.room(length) if self.ragged else self._sizes.round_up(length)
        return self.counted(room * self.bytes_per_token + self._fixed_bytes)

    def lone_row_bytes(self, length: int) -> int:
        """The same for a row that has the batch to itself."""
        return self.counted(self._sizes.round_up(length) * self.bytes_per_token + self._fixed_bytes)

    def prefill(
        self,
        caches: list[Cache],
        tokens: Sequence[int],
        embeddings: mx.array | None = None,
        *,
        adapter: int | None = None,
    ) -> None:
        """Add ``tokens`` to ``caches``; returns when that has happened.

        ``embeddings`` [count, hidden] is what stands for them, where that is an image; ``adapter`` whom they are for.
        """
        # Only the caches are evaluated, so the output head is never computed for the prompt.
        self._run(caches, tokens, embeddings, adapter)
        mx.eval([cache.state for cache in caches])
        # A slice's activations are much larger than a step's: their buffers are of no use to the next one.
        mx.clear_cache()

    def embed(
        self, inputs: Sequence[Sequence[int]], pooling: Pooling, caches: list[Cache] | None = None
    ) -> NDArray[np.float32]:
        """Pooled hidden states [inputs, width], see :class:`Pooler`; only if there is a ``pooler``."""
        if self.pooler is None:
            raise ValueError("this network's hidden states cannot be had")
        return self.pooler(inputs, pooling, caches)

    def encode(self, image: PromptImage) -> mx.array:
        """Embeddings [tokens, hidden] of an image; only if there are ``images``."""
        if self.images is None:
            raise ValueError("this model reads no images")
        return self.images.encode(image)

    def _run(
        self, caches: list[Cache], tokens: Sequence[int], embeddings: mx.array | None, adapter: int | None
    ) -> mx.array:
        """Logits [1, count, vocabulary]; nothing is evaluated yet."""
        others = {} if embeddings is None else {"input_embeddings": embeddings[None]}
        with self.adapters.applied(self.adapters.chosen([adapter])):
            logits: mx.array = self.model(mx.array([list(tokens)]), cache=caches, **others)
        return logits

    def score(
        self,
        caches: list[Cache],
        tokens: Sequence[int],
        following: Sequence[int],
        top: int,
        embeddings: mx.array | None = None,
        *,
        adapter: int | None = None,
    ) -> list[TokenEvent]:
        """Like :meth:`prefill`, and tells how likely each token of ``following`` was after the one in ``tokens``."""
        logits = self._run(caches, tokens, embeddings, adapter)[0]
        scores = logprobs(logits, mx.array(list(following)), top)
        mx.eval([cache.state for cache in caches], scores)
        mx.clear_cache()
        return token_events(following, scores)

    def decode(
        self,
        tokens: mx.array,
        caches: "CacheBatch",
        prompt: PromptSlice | None = None,
        adapters: Sequence[int | None] = (),
    ) -> mx.array:
        """Logits [rows, vocabulary] after one more token a row; starts the work and does not wait for it.

        ``tokens`` may also be [rows, count], for logits [rows, count, vocabulary]; ``caches.rows.advance`` takes back
        the positions of those that are rejected.

        ``prompt`` is read in the same pass, which spares it reading the weights: only if the model ``fuses``, and with
        one token a row.

        ``adapters`` says which one each row has, if any has one.
        """
        if prompt is not None:
            return self._decode_fused(tokens, caches, prompt, adapters)
        rows = caches.rows
        count = tokens.size // tokens.shape[0]
        caches.reserve(count)
        placed = rows.placed(tokens).reshape(-1, count)
        chosen = self.adapters.chosen(adapters)
        with self.adapters.applied(None if chosen is None else rows.placed(chosen)):
            logits = rows.restored(self.model(placed, cache=caches.layers)).reshape(*tokens.shape, self.vocabulary)
        rows.advance(count)
        mx.async_eval(logits)
        return logits

    def _decode_fused(
        self, tokens: mx.array, caches: "CacheBatch", prompt: PromptSlice, adapters: Sequence[int | None]
    ) -> mx.array:
        rows = caches.rows
        caches.reserve(1)
        inputs = mx.concatenate([rows.placed(tokens), mx.array(list(prompt.tokens), dtype=tokens.dtype)])
        # The head computes the slice's logits too: for 16 and 32 tokens, a CPU's timings did not show it.
        with self.adapters.applied(self._chosen_fused(rows, prompt, adapters)):
            logits = self.model(inputs[:, None], cache=caches.fused(prompt))
        logits = rows.restored(logits[: len(rows), 0])
        rows.advance(1)
        mx.async_eval(logits, [arrays(cache) for cache in prompt.caches])
        return logits

    def _chosen_fused(self, rows: Rows, prompt: PromptSlice, adapters: Sequence[int | None]) -> mx.array | None:
        chosen = self.adapters.chosen([*adapters, *[prompt.adapter] * len(prompt.tokens)])
        if chosen is None:
            return None
        count = len(adapters)
        return mx.concatenate([rows.placed(chosen[:count]), chosen[count:]])

    def release(self) -> None:
        """Give memory back that MLX keeps for later."""
        mx.clear_cache()

    def device_bytes(self) -> int:
        """Memory that MLX holds in all, weights and what it keeps for later included."""
        return mx.get_active_memory() + mx.get_cache_memory()

    # What the model can do

    def _first(self, caches: list[Cache]) -> mx.array:
        """Logits of a first token, which fills ``caches``; only these are evaluated."""
        try:
            logits: mx.array = self.model(mx.array([[0]]), cache=caches)
            mx.eval([cache.state for cache in caches])
        except Exception as error:
            if self._quantization is None:
                raise
            raise _not_quantizable(f"its attention cannot read them ({error})") from error
        return logits

    def _attends_by_slab(self, first: list[Cache]) -> bool:
        """Whether two rows in two slabs get the logits that one sequence gets for its first and second token."""
        tokens = mx.array([0, 1])
        expected = self._evaluated(tokens[None], self.start())[0]
        batch = CacheBatch(self.start(), self._empty, SlabSizes(smallest=1, largest=2, step=1))
        batch.join(self.start(), 0)
        batch.join(first, 1)
        return _agree(self.decode(tokens, batch), expected)

    def _fuses(self) -> bool:
        """Whether a row and a slice in the same step leave behind what each would alone."""
        tokens = [0, 1, 0]
        expected = self._evaluated(mx.array([tokens]), self.start())[0]
        batch, prompt = self.batch(), PromptSlice(tokens[:2], self.start())
        batch.join(self.start(), 0)
        first = self.decode(mx.array(tokens[:1]), batch, prompt)
        third = self._evaluated(mx.array([tokens[2:]]), prompt.caches)[0]
        return _agree(mx.concatenate([first, third]), expected[mx.array([0, 2])])

    def _evaluated(self, tokens: mx.array, caches: list[Cache]) -> mx.array:
        # In a pipeline two passes evaluated together would wait for each other: each begins with receiving.
        logits: mx.array = self.model(tokens, cache=caches)
        mx.eval(logits)
        return logits


def _agree(actual: mx.array, expected: mx.array) -> bool:
    actual, expected = actual.astype(mx.float32), expected.astype(mx.float32)
    return bool((mx.linalg.norm(actual - expected) <= TOLERANCE * mx.linalg.norm(expected)).item())


def _not_quantizable(reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"This model's keys and values cannot be quantized: {reason}.", suggestions=("Serve it without kv_bits.",)
    )


def _group_size(model: nn.Module, wanted: int) -> int:
    """``wanted`` or else 32, whichever divides all heads."""
    caches = make_prompt_cache(model)
    model(mx.array([[0]]), cache=caches)
    widths = {array.shape[-1] for cache in caches if type(cache) is KVCache for array in arrays(cache)}
    if not widths:
        raise _not_quantizable("none of its layers has a plain KV cache")
    for size in (wanted, 32):
        if all(width % size == 0 for width in widths):
            return size
    raise _not_quantizable(f"its heads have {', '.join(map(str, sorted(widths)))} elements, which 32 does not divide")


def _empty(cache: Cache) -> Arrays:
    """Arrays of the shapes and types in a plain cache, [0, KV heads, 0, width]; none for other kinds."""
    if not is_plain(cache):
        return []
    return [mx.zeros((0, array.shape[1], 0, array.shape[3]), array.dtype) for array in arrays(cache)]


def _bytes_per_position(held: Sequence[mx.array]) -> int:
    return sum(int(array.shape[1] * array.shape[3] * array.itemsize) for array in held)


def _growing_bytes(cache: Cache) -> int:
    """Bytes of one position, if the cache keeps all of them."""
    if isinstance(cache, CacheList):
        return sum(map(_growing_bytes, cache.caches))
    return _bytes_per_position(arrays(cache)) if is_plain(cache) else 0


def _fixed_bytes(cache: Cache) -> int:
    """Bytes of a cache that does not grow with each position: in a batch a window takes its full size."""
    if isinstance(cache, CacheList):
        return sum(map(_fixed_bytes, cache.caches))
    if is_plain(cache):
        return 0
    if hasattr(cache, "max_size"):
        return _bytes_per_position([cache.keys, cache.values]) * int(cache.max_size)
    nbytes: int = cache.nbytes
    return nbytes


class CacheBatch:
    """The caches of all rows of a decode batch, one object a layer.

    Args:
        like: one sequence's empty caches.
        empty: the arrays of those that are plain, see :class:`Rows`; an empty list for others.
        sizes: which rows share a slab.
        other_bytes: tells what all layers that are not plain take, for a number of rows and the longest one's length.
    """

    def __init__(
        self,
        like: Sequence[Cache],
        empty: Sequence[Arrays],
        sizes: SlabSizes,
        other_bytes: Callable[[int, int], int] = lambda *_: 0,
    ) -> None:
        self.rows = Rows(sizes, empty)
        self._other_bytes = other_bytes
        self.layers: list[Cache] = [
            row_cache(self.rows, layer, cache) if is_plain(cache) else None for layer, cache in enumerate(like)
        ]
        self._others = [layer for layer, cache in enumerate(like) if not is_plain(cache)]
        """Layers whose caches are batched by mlx-lm, with rows in the order of the slabs."""
        self._order: list[Row] = []
        """Their rows."""

    def join(self, caches: Sequence[Cache], length: int) -> None:
        """Take over one sequence's caches, which hold ``length`` positions, as the last row: nobody may use them on."""
        row = self.rows.append(length, map(given_up, caches))
        for layer in self._others:
            joining = caches[layer].merge([caches[layer]])
            if self.layers[layer] is None:
                self.layers[layer] = joining
            else:
                self.layers[layer].extend(joining)
        self._order.append(row)
        self._follow()

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self.rows.keep(indices)
        self._follow()

    def reserve(self, count: int) -> None:
        """Make room for ``count`` more positions in every row; called before they are decoded."""
        self.rows.reserve(count)
        self._follow()

    def fused(self, prompt: PromptSlice) -> list[FusedKVCache]:
        """The caches for a step that is shared with ``prompt``, one a layer; all layers' have to be plain."""
        offset = mx.concatenate([self.rows.offset, prompt.positions])
        return [FusedKVCache(layer, own, offset) for layer, own in zip(self.layers, prompt.caches, strict=True)]

    def extract(self, row: int) -> list[Cache]:
        """One row's caches, one a layer; plain ones are views, to be copied from at once."""
        place = self.rows.place(row)
        return [layer.extract(row if isinstance(layer, RowKVCache) else place) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return self.rows.nbytes + self._others_nbytes

    def nbytes_ahead(self, joining: Sequence[int] = ()) -> int:
        """The most bytes on the way to one more position in every row, and in rows of these lengths that join."""
        lengths = [*self.rows.lengths, *joining]
        others = self._other_bytes(len(lengths), max(lengths, default=-1) + 1) if self._others else 0
        return self.rows.nbytes_ahead(joining) + max(self._others_nbytes, others)

    @property
    def _others_nbytes(self) -> int:
        others = (self.layers[layer] for layer in self._others)
        return sum(int(cache.nbytes) for cache in others if cache is not None)

    def trim(self) -> None:
        """Give back what is not needed."""
        self.rows.trim()

    def _follow(self) -> None:
        """Bring the rows of the other layers into the order of the slabs."""
        placed = self.rows.in_slabs
        if placed == self._order:
            return
        indices = [self._order.index(row) for row in placed]
        for layer in self._others:
            if indices:
                self.layers[layer].filter(indices)
            else:
                self.layers[layer] = None
        self._order = placed
