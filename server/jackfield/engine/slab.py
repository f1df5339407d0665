"""Slabs: the keys and values of rows of similar length, in one rectangle a layer.

One rectangle for a whole decode batch would be as long as its longest row for all of them. Rows are therefore kept
with others of their class, and what the batch holds is linear in what its rows hold.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import mlx.core as mx

Arrays = list[mx.array]
"""One layer's keys and values, [slots, KV heads, positions, width] each: two arrays, or six when they are quantized."""

Size = tuple[int, int]
"""Slots and positions of a slab."""

LENGTH_STEP = 256
"""Slabs grow by this many positions, so that growing is rare."""

SLACK = 3, 4
"""A slab is cut once less than this share of it is needed."""


@dataclass(slots=True, eq=False)
class Row:
    """One sequence of the batch."""

    length: int
    """Positions that it holds."""


@dataclass(frozen=True, slots=True)
class SlabSizes:
    """Which rows share a slab.

    Args:
        smallest: positions of the smallest class; each further one has twice as many.
        largest: rows that need more positions than this have a slab to themselves.
        step: slabs grow by this many positions.
    """

    smallest: int = LENGTH_STEP
    largest: int = 4096
    step: int = LENGTH_STEP

    def limit(self, positions: int) -> int | None:
        """The most positions of a row in the class of one that needs ``positions``; None for a slab of its own."""
        limit = self.smallest
        while limit < positions:
            limit *= 2
        return limit if limit <= self.largest else None

    def room(self, positions: int) -> int:
        """Positions that such a row takes at most, those included that only others of its slab use."""
        return self.round_up(self.limit(positions) or positions)

    def round_up(self, positions: int) -> int:
        """Positions that a slab has for rows of that length."""
        return -(-positions // self.step) * self.step

    def slots(self, rows: int) -> int:
        """Slots that a slab has for so many rows: up to a quarter more, so that not each that joins moves the rest."""
        unit = 1 << max(rows.bit_length() - 3, 0)
        return -(-rows // unit) * unit

    def area(self, lengths: Collection[int]) -> int:
        """Slots times positions that a slab has for rows of these lengths."""
        return self.slots(len(lengths)) * self.round_up(max(lengths, default=0))


ONE_SLAB = SlabSizes(smallest=sys.maxsize, largest=sys.maxsize)
"""All rows in one rectangle, as long as the longest of them."""


class Slab:
    """Rows that share a rectangle in every layer; the first slots are taken, in the order of ``rows``.

    Args:
        limit: positions of the longest row that may stay.
        sizes: in which steps to grow.
        empty: one layer's arrays after another, without slots or positions.
    """

    def __init__(self, limit: int, sizes: SlabSizes, empty: Sequence[Arrays]) -> None:
        self.limit = limit
        self.rows: list[Row] = []
        self.layers = [list(arrays) for arrays in empty]
        self._sizes = sizes
        self._size: Size = 0, 0
        self._index: tuple[mx.array, mx.array] | None = None
        self._mask: mx.array | None = None

    @property
    def longest(self) -> int:
        """Positions in use in the longest row."""
        return max((row.length for row in self.rows), default=0)

    @property
    def aligned(self) -> bool:
        """Whether all rows have the same length."""
        return all(row.length == self.rows[0].length for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return sum(array.nbytes for arrays in self.layers for array in arrays)

    # Rows that come and go

    def adopt(self, row: Row, layers: Iterable[Arrays]) -> None:
        """Take these arrays, which hold ``row`` alone, for an empty slab's own: nothing is copied."""
        self.layers = [list(arrays) for arrays in layers]
        slots, _, capacity, _ = next((arrays[0].shape for arrays in self.layers if arrays), (0, 0, 0, 0))
        self._size = slots, capacity
        self.rows.append(row)
        self.changed()
        self._cut()

    def add(self, row: Row, layers: Iterable[Arrays], count: int) -> None:
        """Copy a row, [1, KV heads, length or more, width] in each layer, into the next slot.

        There is room for ``count`` more positions of it then. One layer is taken from ``layers`` after the other, so
        that each can go before the next is copied.
        """
        slot = len(self.rows)
        self.rows.append(row)
        self.changed()
        size = self._grown(max(self.longest, row.length + count))
        for held, given in zip(self.layers, layers, strict=True):
            self._resize_layer(held, size)
            _write(held, slot, row.length, given)
            del given
        self._size = size

    def views(self, row: Row, layer: int) -> Arrays:
        """What a row holds, [1, KV heads, length, width]: views, of which copies have to be made at once."""
        slot = self.rows.index(row)
        return [array[slot : slot + 1, :, : row.length] for array in self.layers[layer]]

    def keep(self, rows: Collection[Row]) -> None:
        """Drop all other rows. The last ones move into their slots, so that as few as possible are copied."""
        order = list(range(len(self.rows)))
        for slot in reversed(order.copy()):
            if self.rows[slot] not in rows:
                last = order.pop()
                if slot < len(order):
                    order[slot] = last
        if len(order) == len(self.rows):
            return
        for target, source in enumerate(order):
            if target != source:
                self._move(source, target)
        self.rows = [self.rows[slot] for slot in order]
        self.changed()
        self._cut()

    def _move(self, source: int, target: int) -> None:
        row = self.rows[source]
        for layer, held in enumerate(self.layers):
            # A view of the array that is written to would make MLX copy all of it first.
            copies = [mx.contiguous(view) for view in self.views(row, layer)]
            mx.eval(copies)
            _write(held, target, row.length, copies)

    # Room

    def reserve(self, count: int) -> None:
        """Make room for all rows and ``count`` more positions in each."""
        self._resize(self._grown(self.longest + count))

    def trim(self) -> None:
        """Give back all room that one more position in each row does not need."""
        needed = self._needed(self.longest + 1)
        if prod(needed) < prod(self._size):
            self._resize(needed)

    def _needed(self, positions: int) -> Size:
        return self._sizes.slots(len(self.rows)), self._sizes.round_up(positions)

    def _grown(self, positions: int) -> Size:
        slots, capacity = self._size
        if len(self.rows) <= slots and positions <= capacity:
            return self._size
        # All is copied then, so that nothing that is not needed is kept.
        return self._needed(positions)

    def _cut(self) -> None:
        share, whole = SLACK
        needed = self._needed(self.longest)
        if whole * prod(needed) < share * prod(self._size):
            self._resize(needed)

    def _resize(self, size: Size) -> None:
        if size == self._size:
            return
        for held in self.layers:
            self._resize_layer(held, size)
        self._size = size

    def _resize_layer(self, held: Arrays, size: Size) -> None:
        """One layer at a time: the old arrays and the new ones of all layers may not fit together."""
        if size == self._size:
            return
        rows, positions = map(min, size, self._size)
        for index, array in enumerate(held):
            resized = mx.zeros((size[0], array.shape[1], size[1], array.shape[3]), array.dtype)
            resized[:rows, :, :positions] = array[:rows, :, :positions]
            held[index] = resized
        mx.eval(held)

    # Steps

    def changed(self) -> None:
        """Forget what was worked out for the rows' lengths."""
        self._index = self._mask = None

    def index(self, count: int) -> tuple[mx.array, mx.array]:
        """Slots [rows, 1] and positions [rows, count] of the tokens that come in; int32."""
        if self._index is None or self._index[1].shape[1] != count:
            lengths = mx.array([row.length for row in self.rows], dtype=mx.int32)
            slots = mx.arange(len(self.rows), dtype=mx.int32)[:, None]
            self._index = slots, lengths[:, None] + mx.arange(count, dtype=mx.int32)
        return self._index

    def mask(self, count: int) -> mx.array | None:
        """Which positions each incoming token may see; bool [rows, 1, count, longest + count], None for all."""
        if count == 1 and self.aligned:
            return None
        if self._mask is None or self._mask.shape[2] != count:
            _, positions = self.index(count)
            self._mask = (mx.arange(self.longest + count) <= positions[..., None])[:, None]
        return self._mask

    def update(self, layer: int, incoming: Arrays) -> Arrays:
        """Write each row's next positions [rows, KV heads, count, width]; returns all up to the longest row's."""
        rows, _, count, _ = incoming[0].shape
        total = self.longest + count
        held = self.layers[layer]
        if self.aligned:
            for array, new in zip(held, incoming, strict=True):
                array[:rows, :, total - count : total] = new
        else:
            slots, positions = self.index(count)
            for array, new in zip(held, incoming, strict=True):
                array[slots, :, positions] = new.swapaxes(1, 2)
        return [array[:rows, :, :total] for array in held]


def _write(held: Arrays, slot: int, length: int, given: Arrays) -> None:
    """Write a row into its slot of one layer."""
    if length == 0:
        return
    for array, new in zip(held, given, strict=True):
        array[slot : slot + 1, :, :length] = new[:, :, :length]
    # At once: a pending write would keep the given arrays in memory, and from being updated in place.
    mx.eval(held)


def taken(slabs: Sequence[Slab]) -> Iterator[slice]:
    """Where each slab's rows are among all."""
    end = 0
    for slab in slabs:
        start, end = end, end + len(slab.rows)
        yield slice(start, end)
