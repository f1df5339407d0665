"""The KV cache of a decode batch: one left-aligned row per sequence, so that sequences come and go without copies.

mlx-lm's own ``BatchKVCache`` aligns rows on the right and rebuilds the whole batch whenever one sequence joins or
leaves. Here joining writes one row, leaving moves the last row into the gap, and every step writes each row at its own
position. Rows of similar length share a :class:`Slab`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from jackfield.engine.attention import BySlab, Fused
from jackfield.engine.slab import Arrays, Row, Slab, SlabSizes, taken

NEVER = 1 << 62
"""The limit of a slab that its row never leaves."""


def is_plain(cache: Any) -> bool:
    """Whether a layer's cache keeps every position by itself."""
    return type(cache) in (KVCache, QuantizedKVCache)


def arrays(cache: Any) -> Arrays:
    """What one sequence's plain cache holds in one layer; nothing at all before its first token."""
    keys, values = cache.keys, cache.values
    if keys is None:
        return []
    return [keys, values] if isinstance(keys, mx.array) else [*keys, *values]


def given_up(cache: Any) -> Arrays:
    """The same, which the cache holds no more, so that whoever copies them may let each go; nothing if not plain."""
    if not is_plain(cache):
        return []
    held = arrays(cache)
    cache.keys = cache.values = None
    return held


def grow(cache: Any, empty: Arrays, positions: int) -> None:
    """Give a plain cache room for so many positions; ``empty`` are arrays of its shapes, see :class:`Rows`."""
    held = arrays(cache)
    if held and held[0].shape[2] >= positions:
        return
    grown = [mx.zeros((1, like.shape[1], positions, like.shape[3]), like.dtype) for like in empty]
    for target, source in zip(grown, held or [], strict=bool(held)):
        target[:, :, : cache.offset] = source[:, :, : cache.offset]
    mx.eval(grown)
    half = len(grown) // 2
    cache.keys, cache.values = grown if half == 1 else (tuple(grown[:half]), tuple(grown[half:]))


class Rows:
    """The rows of a decode batch and the slabs they lie in: one object that the caches of all layers share.

    The batch has its own order of rows. Networks see them in that of the slabs: :meth:`placed` and :meth:`restored`
    translate.

    Args:
        sizes: which rows share a slab.
        empty: one layer's arrays after another, [0, KV heads, 0, width], for their shapes and types.
    """

    def __init__(self, sizes: SlabSizes, empty: Sequence[Arrays]) -> None:
        self.slabs: list[Slab] = []
        self._rows: list[Row] = []
        self._sizes = sizes
        self._empty = empty
        self._position_bytes = sum(a.shape[1] * a.shape[3] * a.itemsize for arrays in empty for a in arrays)
        self._offset: mx.array | None = None
        self._order: tuple[mx.array, mx.array] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> list[int]:
        """Positions that each row holds, in the batch's order."""
        return [row.length for row in self._rows]

    @property
    def in_slabs(self) -> list[Row]:
        """All rows in the order of the slabs."""
        return [row for slab in self.slabs for row in slab.rows]

    def place(self, row: int) -> int:
        """Where a row of the batch is in the order of the slabs."""
        return self.in_slabs.index(self._rows[row])

    @property
    def offset(self) -> mx.array:
        """Position of the next token of each row, in the order of the slabs; int32 [rows]."""
        if self._offset is None:
            self._offset = mx.array([row.length for row in self.in_slabs], dtype=mx.int32)
        return self._offset

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return sum(slab.nbytes for slab in self.slabs)

    def nbytes_ahead(self, joining: Sequence[int] = (), count: int = 1) -> int:
        """The most bytes on the way to ``count`` more positions in every row, and in rows of these lengths that join.

        Slabs are copied one layer after another; what a layer takes on the side does not count.
        """
        arriving: dict[int | None, list[int]] = defaultdict(list)
        for length in joining:
            arriving[self._sizes.limit(length + count)].append(length + count)
        ahead = []
        taken = {slab.limit for slab in self.slabs} | arriving.keys() - {None}
        for slab in self._largest_first():
            limit = slab.limit if slab.limit in arriving else self._raised_limit(slab, count, taken)
            needed = [row.length + count for row in slab.rows]
            # Who leaves a slab goes last: until then its place is taken.
            ahead.append((slab, limit, [min(positions, limit) for positions in needed]))
            for positions in needed:
                if positions > limit:
                    arriving[self._sizes.limit(positions)].append(positions)
            taken |= {limit} | arriving.keys() - {None}
        held = sum(self._nbytes_of(lengths + arriving.pop(limit, []), slab) for slab, limit, lengths in ahead)
        alone = [[positions] for positions in arriving.pop(None, [])]
        return held + sum(map(self._nbytes_of, [*alone, *arriving.values()]))

    def _nbytes_of(self, lengths: Sequence[int], slab: Slab | None = None) -> int:
        """Bytes of a slab for rows of these lengths, or of the one there is, if that has more."""
        return max(self._sizes.area(lengths) * self._position_bytes, slab.nbytes if slab else 0)

    # Rows that come and go

    def append(self, length: int, layers: Iterable[Arrays]) -> Row:
        """Take over a row at the end that holds ``length`` positions: arrays [1, KV heads, length or more, width].

        One layer is taken from ``layers`` after the other; see :meth:`Slab.add`.
        """
        row = Row(length)
        layers = (given or empty for given, empty in zip(layers, self._empty, strict=True))
        slab = self._slab(length + 1)
        if slab.rows:
            slab.add(row, layers, 1)
        else:
            slab.adopt(row, layers)
        self._rows.append(row)
        self._moved()
        return row

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self._rows = [self._rows[index] for index in indices]
        kept = set(self._rows)
        for slab in self.slabs:
            slab.keep(kept)
        self._moved()

    def reserve(self, count: int) -> None:
        """Make room for ``count`` more positions in every row; rows may change their slabs."""
        for slab in self._largest_first():
            slab.limit = self._raised_limit(slab, count, {slab.limit for slab in self.slabs})
            outgrown = [row for row in slab.rows if row.length + count > slab.limit]
            if outgrown:
                self._move(outgrown, slab, count)
        for slab in self.slabs:
            slab.reserve(count)

    def trim(self) -> None:
        """Give back all room that one more position in each row does not need."""
        for slab in self.slabs:
            slab.trim()

    def _largest_first(self) -> list[Slab]:
        # A slab's rows leave before those of the next smaller one may take its place.
        return sorted(self.slabs, key=lambda slab: slab.limit, reverse=True)

    def _raised_limit(self, slab: Slab, count: int, taken: Collection[int | None]) -> int:
        """The slab's limit, or that of the class into which all of its rows grow, if nobody is there yet."""
        limits = {self._sizes.limit(row.length + count) for row in slab.rows}
        limit = limits.pop()
        if limits or limit in taken or (limit is None and len(slab.rows) > 1):
            return slab.limit
        return max(limit or NEVER, slab.limit)

    def _move(self, rows: Sequence[Row], source: Slab, count: int) -> None:
        for row in rows:
            target = self._slab(row.length + count)
            target.add(row, (source.views(row, layer) for layer in range(len(self._empty))), count)
        source.keep(set(source.rows) - set(rows))
        self._moved()

    def _slab(self, positions: int) -> Slab:
        """The slab for a row that needs so many positions."""
        limit = self._sizes.limit(positions)
        found = next((slab for slab in self.slabs if slab.limit == limit), None)
        if found is None:
            found = Slab(limit or NEVER, self._sizes, self._empty)
            self.slabs.append(found)
        return found

    def _moved(self) -> None:
        self.slabs = [slab for slab in self.slabs if slab.rows]
        self._offset = self._order = None

    # Steps

    def advance(self, count: int | Sequence[int]) -> None:
        """Every row has ``count`` positions more (or fewer, when negative); or each its own count."""
        counts = [count] * len(self._rows) if isinstance(count, int) else count
        for row, more in zip(self._rows, counts, strict=True):
            row.length += more
        for slab in self.slabs:
            slab.changed()
        self._offset = None

    def placed(self, values: mx.array) -> mx.array:
        """The batch's values [rows, ...] in the order of the slabs."""
        order = self._places()
        return values if order is None else values[order[0]]

    def restored(self, values: mx.array) -> mx.array:
        """Values [rows, ...] in the order of the slabs in that of the batch."""
        order = self._places()
        return values if order is None else values[order[1]]

    def _places(self) -> tuple[mx.array, mx.array] | None:
        """Each place's row of the batch and each row's place; None where both are in the same order."""
        placed = self.in_slabs
        if placed == self._rows:
            return None
        if self._order is None:
            place = {row: index for index, row in enumerate(placed)}
            row_of = {row: index for index, row in enumerate(self._rows)}
            self._order = mx.array([row_of[row] for row in placed]), mx.array([place[row] for row in self._rows])
        return self._order

    def update(self, layer: int, incoming: Arrays) -> list[Arrays]:
        """Write each row's next positions [rows, KV heads, count, width]; returns what each slab then holds."""
        if len(self.slabs) == 1:
            return [self.slabs[0].update(layer, incoming)]
        return [
            slab.update(layer, [new[rows] for new in incoming])
            for slab, rows in zip(self.slabs, taken(self.slabs), strict=True)
        ]

    def views(self, row: int, layer: int) -> Arrays:
        """What a row of the batch holds, [1, KV heads, length, width]: views."""
        found = self._rows[row]
        slab = next(slab for slab in self.slabs if found in slab.rows)
        return slab.views(found, layer)


class Tied:
    """A pipeline ties what it sends on to the last layer's ``keys``, so that who evaluates only these sends it too.

    A step of the decode batch is evaluated as a whole: what is put there need not be kept.
    """

    @property
    def keys(self) -> mx.array:
        """Nothing."""
        return mx.array([])

    @keys.setter
    def keys(self, tied: mx.array) -> None:
        """See above."""


class RowKVCache(Tied):
    """Keys and values of one layer for all rows.

    Offers what mlx-lm's model classes ask of a cache: ``offset``, ``update_and_fetch`` and ``make_mask``. The owner
    of :class:`Rows` makes room before a step, and advances it once all layers have been updated.
    """

    def __init__(self, rows: Rows, layer: int) -> None:
        self.rows = rows
        self.layer = layer

    @property
    def offset(self) -> mx.array:
        """Position of each row's next token; int32 [rows]."""
        return self.rows.offset

    def make_mask(
        self, count: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | BySlab | None:
        """The attention mask for ``count`` incoming tokens a row."""
        if window_size is not None:
            raise ValueError("sliding windows need a rotating cache")
        masks = [slab.mask(count) for slab in self.rows.slabs]
        return masks[0] if len(masks) == 1 else BySlab(masks)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Write each row's new positions [rows, KV heads, count, dimension]; returns all up to the longest row's."""
        held = self.rows.update(self.layer, self._incoming(keys, values))
        fetched = [self._fetched(arrays) for arrays in held]
        if len(fetched) == 1:
            return fetched[0]
        return BySlab([keys for keys, _ in fetched]), BySlab([values for _, values in fetched])

    def extract(self, row: int) -> Any:
        """The cache of one row, as views: copies of them have to be made before the next step."""
        cache = self._empty()
        length = self.rows.lengths[row]
        if length:
            cache.keys, cache.values = self._fetched(self.rows.views(row, self.layer))
            cache.offset = length
        return cache

    def _incoming(self, keys: mx.array, values: mx.array) -> Arrays:
        return [keys, values]

    def _fetched(self, held: Arrays) -> tuple[Any, Any]:
        return held[0], held[1]

    def _empty(self) -> Any:
        return KVCache()


class QuantizedRowKVCache(RowKVCache):
    """The same in 8 or 4 bits an element, as mlx-lm's ``QuantizedKVCache`` has it: packed uint32, scales and biases.

    mlx-lm takes a cache for quantized by its ``bits``.
    """

    def __init__(self, rows: Rows, layer: int, group_size: int, bits: int) -> None:
        super().__init__(rows, layer)
        self.group_size = group_size
        self.bits = bits

    def _incoming(self, keys: mx.array, values: mx.array) -> Arrays:
        return [part for new in (keys, values) for part in mx.quantize(new, self.group_size, self.bits)]

    def _fetched(self, held: Arrays) -> tuple[Any, Any]:
        return tuple(held[:3]), tuple(held[3:])

    def _empty(self) -> Any:
        return QuantizedKVCache(self.group_size, self.bits)


@dataclass(frozen=True, slots=True)
class PromptSlice:
    """The part of a prompt that is read in a step of the decode batch (chunked prefill, arXiv:2403.02310).

    Args:
        tokens: the prompt's next ones, at least one.
        caches: of the sequence they belong to, one a layer, all of them plain; they get the tokens' positions.
        adapter: which of the model's adapters it is for, if any.
    """

    tokens: Sequence[int]
    caches: list[Any]
    adapter: int | None = None

    @property
    def positions(self) -> mx.array:
        """Where the tokens are in the prompt; int32 [count]."""
        start = self.caches[0].offset
        return mx.arange(start, start + len(self.tokens), dtype=mx.int32)


class FusedKVCache(Tied):
    """One layer's cache in a step with a prompt slice, whose tokens are rows of their own, after the batch's.

    Only attention tells them apart: to it the slice is one sequence of ``count`` tokens.

    Args:
        batch: the layer's cache for the batch's rows.
        prompt: the layer's cache of the sequence that the slice belongs to.
        offset: position of each row's token; int32 [rows + count], one array for all layers, since networks may work
            out rotations once for each that they meet.
    """

    def __init__(self, batch: RowKVCache, prompt: Any, offset: mx.array) -> None:
        self.batch = batch
        self.prompt = prompt
        self.offset = offset
        self._rows = len(batch.rows)

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> Fused:
        """The attention masks: for the one token of each row, and for the slice."""
        batch = self.batch.make_mask(count, return_array, window_size)
        tokens = self.offset.size - self._rows
        return Fused(batch, self.prompt.make_mask(tokens, return_array=return_array, window_size=window_size))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Fused, Fused]:
        """Write the new positions [rows + count, KV heads, 1, dimension]; returns all of both."""
        (row_keys, slice_keys), (row_values, slice_values) = self.split(keys), self.split(values)
        batch_keys, batch_values = self.batch.update_and_fetch(row_keys, row_values)
        prompt_keys, prompt_values = self.prompt.update_and_fetch(slice_keys, slice_values)
        return Fused(batch_keys, prompt_keys), Fused(batch_values, prompt_values)

    def split(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Rows [rows, heads, 1, width] and slice [1, heads, count, width] of x [rows + count, heads, 1, width]."""
        return x[: self._rows], x[self._rows :].swapaxes(0, 2)

    @staticmethod
    def joined(rows: mx.array, prompt: mx.array) -> mx.array:
        """What :meth:`split` took apart."""
        return mx.concatenate([rows, prompt.swapaxes(0, 2)])


def row_cache(rows: Rows, layer: int, like: KVCache | QuantizedKVCache) -> RowKVCache:
    """The batch's counterpart of one sequence's cache."""
    if isinstance(like, QuantizedKVCache):
        return QuantizedRowKVCache(rows, layer, like.group_size, like.bits)
    return RowKVCache(rows, layer)
