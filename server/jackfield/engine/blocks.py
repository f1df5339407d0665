"""What mlx-lm's caches hold, in pieces that outlive them: blocks of positions, and snapshots of whole states.

A plain KV cache holds each position by itself, so any block of positions can be cut out of it and put together with
others again. A rotating cache or a recurrent state mixes positions: only the whole of it is exact, at exactly the
position where it was taken. Models may have layers of both kinds.

Pieces are values. MLX never changes an array's memory while somebody else refers to it, but an assignment to a slice
(``cache.keys[..., 3] = x``) changes the Python object; so no such object is ever shared between a piece and a cache.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from sys import intern
from typing import Any, Literal, NamedTuple, cast

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, QuantizedKVCache, RotatingKVCache

from jackfield.engine.request import PromptImage

BLOCK_TOKENS = 32
BLOCK_OVERHEAD = 1024
"""Bytes that a block takes besides its arrays: digests, tokens, table entries."""
JOINED_AT_ONCE = 16
"""Blocks that should be joined in one evaluation: meanwhile they are held three times over."""

Cache = Any
"""One layer's cache: mlx-lm's classes share a protocol but no type."""

Kind = Literal["kv", "state"]
"""``kv``: keys and values of a block's own positions; ``state``: the whole state of all other layers after it."""

Key = tuple[Kind, bytes]
"""A block's kind and digest."""

Buffer = bytes | memoryview

Form = tuple[str, list[tuple[tuple[int, ...], mx.Dtype]]]
"""What all pieces that can be joined have in common: layout, shapes and dtypes."""

# Exact types: a subclass may hold more than its parent. Of all others nothing is kept, since nobody has read them.
_POSITIONAL = (KVCache, QuantizedKVCache)
_WHOLE = (RotatingKVCache, ChunkedKVCache, ArraysCache)

_INTEGERS = (mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64)
_FLOATS = (mx.float16, mx.bfloat16, mx.float32, mx.complex64)
_DTYPES = {str(dtype).rpartition(".")[2]: dtype for dtype in (*_INTEGERS, *_FLOATS)}


class Link(NamedTuple):
    """One block's place in a chain of tokens."""

    digest: bytes
    """Of the tokens and all that come before them, so that equal tokens after different prefixes differ."""
    parent: bytes
    """The digest of the block before; for the first, what stands for an adapter, or nothing."""
    tokens: bytes
    """BLOCK_TOKENS token ids; uint32, little-endian. Then, in order, the digests of the images that they stand for."""


def digest(parent: bytes, tokens: bytes) -> bytes:
    """The 16 bytes that stand for ``tokens`` after the block ``parent``."""
    return blake2b(parent + tokens, digest_size=16).digest()


def chain(tokens: Sequence[int], images: Iterable[PromptImage] = (), root: bytes = b"") -> list[Link]:
    """The whole blocks that ``tokens`` start with. Equal tokens of different ``images`` make different blocks.

    ``root`` stands for what computes them, if that is not the model alone.
    """
    data, size = array("I", tokens).tobytes(), 4 * BLOCK_TOKENS
    links, parent = [], root
    for start in range(0, len(data) - size + 1, size):
        own = data[start : start + size] + _digests(images, start // 4)
        links.append(Link(digest(parent, own), parent, own))
        parent = links[-1].digest
    return links


def _digests(images: Iterable[PromptImage], first: int) -> bytes:
    """Of the images that have tokens in the block which begins with token ``first``."""
    return b"".join(image.digest for image in images if image.start < first + BLOCK_TOKENS and image.end > first)


def keys_of(links: Sequence[Link], with_state: bool) -> list[Key]:
    """The keys of a chain, and of the state after it."""
    keys: list[Key] = [("kv", link.digest) for link in links]
    return [*keys, ("state", links[-1].digest)] if with_state and links else keys


class Piece(NamedTuple):
    """Arrays out of caches, and how they belong together."""

    arrays: tuple[mx.array, ...]
    """Of positions: one array for all keys and values of one shape, [how many, KV heads, positions, dimension]."""
    layout: str
    """JSON. Of positions: for each cache its keys' and values' places in ``arrays``. Of a state: each cache's class
    and its ``state``, with ``{"array": place}`` for arrays."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True, slots=True)
class Block:
    """A piece and the tokens it stands for; never changed once made."""

    kind: Kind
    link: Link
    piece: Piece

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.kind, self.link.digest

    @property
    def nbytes(self) -> int:
        """Bytes it takes in all."""
        return self.piece.nbytes + BLOCK_OVERHEAD

    def record(self) -> "Record":
        """A copy as bytes, for other threads and for files."""
        arrays = self.piece.arrays
        payload = tuple(_bytes(array) for array in arrays)
        types = tuple((str(array.dtype).rpartition(".")[2], array.shape) for array in arrays)
        return Record(self.kind, self.link, self.piece.layout, types, payload)


@dataclass(frozen=True, slots=True)
class Record:
    """A block as bytes, which may be handled on any thread.

    Raises:
        ValueError: the bytes are not what layout and types say, or the digest is of other tokens.
    """

    kind: Kind
    link: Link
    layout: str
    types: tuple[tuple[str, tuple[int, ...]], ...]
    """Of each array, its dtype's name and shape."""
    payload: tuple[Buffer, ...]

    def __post_init__(self) -> None:
        if digest(self.link.parent, self.link.tokens) != self.link.digest:
            raise ValueError("its digest is not that of its tokens")
        if [len(data) for data in self.payload] != [size_of(*type_) for type_ in self.types]:
            raise ValueError("its arrays have other sizes")

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.kind, self.link.digest

    @property
    def nbytes(self) -> int:
        """Bytes it takes in all."""
        return sum(len(data) for data in self.payload) + BLOCK_OVERHEAD

    def block(self) -> Block:
        """The block again. On the engine thread only."""
        arrays = tuple(_thaw(data, *type_) for data, type_ in zip(self.payload, self.types, strict=True))
        return Block(self.kind, self.link, Piece(arrays, intern(self.layout)))


def _bytes(held: mx.array) -> bytes:
    # MLX does not declare that its arrays are buffers.
    return bytes(memoryview(cast(Any, mx.flatten(held).view(mx.uint8))))


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of an array of a dtype's name and a shape.

    Raises:
        ValueError: there is no such dtype.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"it has an array of {dtype!r}")
    return int(_DTYPES[dtype].size * prod(shape))


def _thaw(data: Buffer, dtype: str, shape: tuple[int, ...]) -> mx.array:
    if not prod(shape):
        return mx.zeros(shape, _DTYPES[dtype])
    return mx.array(np.frombuffer(data, np.uint8)).view(_DTYPES[dtype]).reshape(shape)


def stateful(caches: Iterable[Cache]) -> bool:
    """Whether there are layers whose state can be taken up only where it was taken."""
    return any(type(cache) not in _POSITIONAL for cache in _leaves(caches))


def reusable(caches: Iterable[Cache]) -> bool:
    """Whether all layers' caches are of kinds that can be kept and filled again."""
    return all(type(cache) in _POSITIONAL + _WHOLE for cache in _leaves(caches))


def _leaves(caches: Iterable[Cache]) -> Iterator[Cache]:
    for cache in caches:
        if type(cache) is CacheList:
            yield from _leaves(cache.caches)
        else:
            yield cache


def _positional(caches: Iterable[Cache]) -> list[Cache]:
    return [cache for cache in _leaves(caches) if type(cache) in _POSITIONAL]


def _whole(caches: Iterable[Cache]) -> list[Cache]:
    return [cache for cache in _leaves(caches) if type(cache) not in _POSITIONAL]


def cut(caches: Sequence[Cache], start: int, end: int) -> Piece:
    """Copy positions ``start`` to ``end`` out of ``caches``, one a layer, each of one sequence; not evaluated yet.

    Raises:
        ValueError: they hold fewer positions.
    """
    groups: dict[tuple[tuple[int, ...], mx.Dtype], list[mx.array]] = {}
    layout = [[_group(groups, array[0, :, start:end]) for array in _arrays(c, end)] for c in _positional(caches)]
    # A stack of one would be a view, and keep all of the cache.
    stacks = tuple(mx.contiguous(mx.stack(parts)) for parts in groups.values())
    return Piece(stacks, intern(json.dumps(layout)))


def _group(groups: dict[tuple[tuple[int, ...], mx.Dtype], list[mx.array]], part: mx.array) -> tuple[int, int]:
    """Put ``part`` with those like it; tells where it is: which group, and which of it."""
    kind = part.shape, part.dtype
    group = groups.setdefault(kind, [])
    group.append(part)
    return list(groups).index(kind), len(group) - 1


def _arrays(cache: Cache, length: int) -> list[Any]:
    """The arrays of a positional cache: keys, then values."""
    if cache.keys is None:
        # Some models' layers have a cache, but no attention to fill it.
        return []
    if cache.offset < length:
        raise ValueError(f"the cache holds {cache.offset} positions, not {length}")
    return [cache.keys, cache.values] if type(cache) is KVCache else [*cache.keys, *cache.values]


def snapshot(caches: Sequence[Cache]) -> Piece:
    """Copy the state of all layers that are not positional; not evaluated yet."""
    arrays: list[mx.array] = []
    layout = [[type(cache).__name__, _pack(_state(cache), arrays)] for cache in _whole(caches)]
    return Piece(tuple(arrays), intern(json.dumps(layout)))


def _state(cache: Cache) -> Any:
    """``cache.state``, without room that is not used and positions that have left the window."""
    if isinstance(cache, ArraysCache) or cache.keys is None:
        return cache.state
    if isinstance(cache, ChunkedKVCache):
        return [*cache.keys_and_values(), *cache.state[2:]]
    if cache.keys.shape[2] == cache.size():
        # Not put in order: sums over positions in another order would not be the same to the last bit.
        return cache.state
    keys, values = (cache._temporal_order(held) for held in (cache.keys, cache.values))
    surplus = keys.shape[2] - cache.max_size
    keys, values = cache._trim(surplus, keys), cache._trim(surplus, values)
    return keys, values, cache.offset, cache.keep, cache.max_size, keys.shape[2]


def _pack(value: Any, arrays: list[mx.array]) -> Any:
    """``value`` as JSON; its arrays are copied to the end of ``arrays``."""
    if isinstance(value, mx.array):
        # Copies when it is a view of something larger.
        arrays.append(mx.contiguous(value))
        return {"array": len(arrays) - 1}
    return [_pack(item, arrays) for item in value] if isinstance(value, list | tuple) else value


def _unpack(value: Any, arrays: Sequence[mx.array]) -> Any:
    if isinstance(value, dict):
        # A new object on the same memory: the cache may assign to its slices.
        return arrays[value["array"]][...]
    return [_unpack(item, arrays) for item in value] if isinstance(value, list) else value


class Joint:
    """Consecutive blocks of positions, put together as they come, from the first one on.

    Holds on to none of them, so that together they need hardly more than the result.

    Args:
        count: how many will come, at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.done = 0
        """How many have come."""
        self._form: Form | None = None
        self._rows: list[list[mx.array]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the result, which are taken from the first block on."""
        return sum(array.nbytes for rows in self._rows for array in rows)

    def put(self, pieces: Sequence[Piece]) -> None:
        """Copy the next blocks to their place; at once, since what waits to be copied would keep them.

        Raises:
            ValueError: they are not of one kind.
        """
        if self._form is None:
            self._form = _form(pieces[0])
            self._rows = [[_room(like, self.count) for _ in range(like.shape[0])] for like in pieces[0].arrays]
        if any(_form(piece) != self._form for piece in pieces):
            raise ValueError("its blocks are of different kinds")
        span = slice(self.done * BLOCK_TOKENS, (self.done + len(pieces)) * BLOCK_TOKENS)
        for targets, parts in zip(self._rows, zip(*(piece.arrays for piece in pieces), strict=True), strict=True):
            joined = mx.concatenate(list(parts), axis=2)
            for row, target in enumerate(targets):
                target[:, :, span] = joined[row : row + 1]
        mx.eval(self._rows)
        self.done += len(pieces)

    def layers(self, count: int) -> list[list[mx.array]]:
        """For each cache the arrays of the first ``count`` blocks, which belong to the caller: it is empty then.

        Raises:
            ValueError: fewer have come.
        """
        if self._form is None or count > self.done:
            raise ValueError(f"{self.done} blocks of {count} are here")
        rows, self._rows = self._rows, []
        if count < self.count:
            rows = [[mx.contiguous(array[:, :, : count * BLOCK_TOKENS]) for array in own] for own in rows]
        return [[rows[group][row] for group, row in places] for places in json.loads(self._form[0])]


def _form(piece: Piece) -> Form:
    return piece.layout, [(array.shape, array.dtype) for array in piece.arrays]


def _room(like: mx.array, count: int) -> mx.array:
    """One row's array for ``count`` blocks. Each row has its own, so that it can go when its cache grows."""
    _, heads, positions, size = like.shape
    if positions != BLOCK_TOKENS:
        raise ValueError(f"a block has {positions} positions")
    return mx.zeros((1, heads, count * BLOCK_TOKENS, size), like.dtype)


def restore(layers: Sequence[Sequence[mx.array]], state: Piece | None, caches: Sequence[Cache]) -> None:
    """Fill empty ``caches``, one a layer, of the classes that the pieces are from.

    Args:
        layers: what a :class:`Joint` has made; it belongs to the caches from now on.
        state: the snapshot at its end, when there are layers that need it.

    Raises:
        ValueError: the caches are of other kinds; they are still empty then.
    """
    with _all_or_nothing(caches):
        for cache, arrays in zip(_positional(caches), layers, strict=True):
            _fill(cache, arrays)
        for cache, (name, packed) in zip(_whole(caches), json.loads(state.layout) if state else (), strict=True):
            if type(cache).__name__ != name:
                raise ValueError(f"a {name} was kept, not a {type(cache).__name__}")
            cache.state = _unpack(packed, state.arrays if state else ())


@contextmanager
def _all_or_nothing(caches: Sequence[Cache]) -> Iterator[None]:
    """When something fails on the way, ``caches`` are what they were before."""
    before = [(cache.__dict__, dict(cache.__dict__)) for cache in _leaves(caches)]
    try:
        yield
    except BaseException:
        for attributes, old in before:
            attributes.clear()
            attributes.update(old)
        raise


def _fill(cache: Cache, arrays: Sequence[mx.array]) -> None:
    if not arrays:
        return
    if len(arrays) != (2 if type(cache) is KVCache else 6):
        raise ValueError(f"{len(arrays)} arrays do not make a {type(cache).__name__}")
    half = len(arrays) // 2
    cache.keys, cache.values = arrays if half == 1 else (tuple(arrays[:half]), tuple(arrays[half:]))
    cache.offset = arrays[0].shape[2]
