"""The KV cache of a decode batch: one left-aligned row per sequence, so that sequences come and go without copies.

mlx-lm's own ``BatchKVCache`` aligns rows on the right and rebuilds the whole batch whenever one sequence joins or
leaves. Here joining writes one row, leaving moves the last row into the gap, and every step writes each row at its own
position.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.models.cache import KVCache

LENGTH_STEP = 256
"""Rows grow by this many positions, so that growing is rare."""


class Rows:
    """The lengths of the batch's rows: one object that the caches of all layers share."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.offset = mx.array([], dtype=mx.int32)
        """Position of the next token of each row; int32, shape [rows]."""
        self._index: tuple[mx.array, mx.array] | None = None
        self._mask: mx.array | None = None

    @property
    def longest(self) -> int:
        """Positions in use in the longest row."""
        return max(self.lengths, default=0)

    def append(self, length: int) -> None:
        """Add a row at the end that already holds ``length`` positions."""
        self._set([*self.lengths, length])

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self._set([self.lengths[index] for index in indices])

    def advance(self, count: int) -> None:
        """Every row has ``count`` positions more (or fewer, when negative)."""
        self._set([length + count for length in self.lengths])

    def _set(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.offset = mx.array(lengths, dtype=mx.int32)
        self._index = self._mask = None

    def index(self, count: int) -> tuple[mx.array, mx.array]:
        """Row numbers [rows, 1] and positions [rows, count] of the tokens that come in; int32."""
        if self._index is None:
            rows = mx.arange(len(self.lengths), dtype=mx.int32)[:, None]
            self._index = rows, self.offset[:, None] + mx.arange(count, dtype=mx.int32)
        return self._index

    def mask(self, count: int) -> mx.array | None:
        """Which positions each incoming token may see; bool [rows, 1, count, longest + count], None for all."""
        if count == 1 and min(self.lengths) == self.longest:
            return None
        if self._mask is None:
            _, positions = self.index(count)
            self._mask = (mx.arange(self.longest + count) <= positions[..., None])[:, None]
        return self._mask


class RowKVCache:
    """Keys and values of one layer for all rows; shape [rows, KV heads, positions, head dimension].

    Offers what mlx-lm's model classes ask of a cache: ``offset``, ``update_and_fetch`` and ``make_mask``. The owner
    of :class:`Rows` advances it once all layers have been updated.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> mx.array:
        """Position of each row's next token; int32 [rows]."""
        return self.rows.offset

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        """The attention mask for ``count`` incoming tokens a row."""
        if window_size is not None:
            raise ValueError("sliding windows need a rotating cache")
        return self.rows.mask(count)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write each row's new positions [rows, heads, count, dimension] and return all up to the longest row."""
        rows, _, count, _ = keys.shape
        total = self.rows.longest + count
        self.keys = _reserve(self.keys, keys, rows, total)
        self.values = _reserve(self.values, values, rows, total)
        if rows == 1:
            start = self.rows.longest
            self.keys[:1, :, start:total] = keys
            self.values[:1, :, start:total] = values
        else:
            row, position = self.rows.index(count)
            self.keys[row, :, position] = keys.swapaxes(1, 2)
            self.values[row, :, position] = values.swapaxes(1, 2)
        return self.keys[:rows, :, :total], self.values[:rows, :, :total]

    def extend(self, other: KVCache) -> None:
        """Take over the one row of ``other`` as the last row; call before ``Rows.append``."""
        row, length = len(self.rows.lengths), other.offset
        if other.keys is None or other.values is None:
            return
        self.keys = _reserve(self.keys, other.keys, row + 1, max(length, self.rows.longest))
        self.values = _reserve(self.values, other.values, row + 1, max(length, self.rows.longest))
        self.keys[row : row + 1, :, :length] = other.keys[:, :, :length]
        self.values[row : row + 1, :, :length] = other.values[:, :, :length]

    def filter(self, indices: Sequence[int]) -> None:
        """Keep only these rows, in this order; call before ``Rows.keep``."""
        if self.keys is None or self.values is None:
            return
        for target, source in enumerate(indices):
            length = self.rows.lengths[source]
            # A row without positions may have no room of its own yet.
            if target != source and length:
                self.keys[target, :, :length] = self.keys[source, :, :length]
                self.values[target, :, :length] = self.values[source, :, :length]
        rows, longest = len(indices), max((self.rows.lengths[index] for index in indices), default=0)
        self.keys, self.values = _release(self.keys, rows, longest), _release(self.values, rows, longest)

    def extract(self, row: int) -> KVCache:
        """The cache of one row, as views."""
        cache = KVCache()
        if self.keys is not None and self.values is not None:
            length = self.rows.lengths[row]
            cache.keys = self.keys[row : row + 1, :, :length]
            cache.values = self.values[row : row + 1, :, :length]
            cache.offset = length
        return cache

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate."""
        return [array for array in (self.keys, self.values) if array is not None]

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return sum(array.nbytes for array in self.state)


def _release(held: mx.array, rows: int, positions: int) -> mx.array:
    """``held`` without the room that is no longer needed, once that is most of it."""
    positions = -(-positions // LENGTH_STEP) * LENGTH_STEP
    if 4 * rows * positions > held.shape[0] * held.shape[2]:
        return held
    return mx.contiguous(held[: max(rows, 1), :, :positions])


def _reserve(held: mx.array | None, like: mx.array, rows: int, positions: int) -> mx.array:
    """``held`` with room for at least ``rows`` and ``positions``, shaped and typed as ``like`` for the rest."""
    _, heads, _, dimension = like.shape
    positions = -(-positions // LENGTH_STEP) * LENGTH_STEP
    if held is None:
        return mx.zeros((rows, heads, positions, dimension), like.dtype)
    if rows > held.shape[0]:
        more = max(rows, 2 * held.shape[0]) - held.shape[0]
        held = mx.concatenate([held, mx.zeros((more, *held.shape[1:]), held.dtype)], axis=0)
    if positions > held.shape[2]:
        more = positions - held.shape[2]
        held = mx.concatenate([held, mx.zeros((*held.shape[:2], more, dimension), held.dtype)], axis=2)
    return held
