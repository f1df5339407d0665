"""The prefix cache: keys and values of prompts seen before, in blocks that all requests share."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
from mlx_lm.models.cache import KVCache

BLOCK_TOKENS = 32

_Key = tuple[int, tuple[int, ...]]
"""The parent block's number (0 for none) and the block's own tokens."""


@dataclass(slots=True)
class Block:
    """Keys and values of BLOCK_TOKENS positions in all layers; never changed once made."""

    number: int
    keys: mx.array
    """Shape [layers, KV heads, BLOCK_TOKENS, key dimension]."""
    values: mx.array

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return int(self.keys.nbytes + self.values.nbytes)


@dataclass(slots=True)
class PrefixCache:
    """Blocks by their whole prefix, with a byte budget and least-recently-used eviction.

    A block's key holds its parent's number, so equal tokens after different prefixes are different blocks.
    """

    budget: int
    """Bytes that the blocks may take in all."""
    nbytes: int = 0
    evictions: int = 0
    _blocks: OrderedDict[_Key, Block] = field(default_factory=OrderedDict)
    _count: int = 0

    def find(self, tokens: Sequence[int]) -> list[Block]:
        """The longest chain of cached blocks that starts ``tokens``."""
        chain: list[tuple[_Key, Block]] = []
        parent = 0
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = parent, tuple(tokens[start : start + BLOCK_TOKENS])
            block = self._blocks.get(key)
            if block is None:
                break
            chain.append((key, block))
            parent = block.number
        self._touch([key for key, _ in chain])
        return [block for _, block in chain]

    def store(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> None:
        """Keep what ``caches`` (one a layer) hold for ``tokens``, as far as it is not here already."""
        keys: list[_Key] = []
        fresh: list[Block] = []
        parent = 0
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = parent, tuple(tokens[start : start + BLOCK_TOKENS])
            if key not in self._blocks:
                if fresh and (len(fresh) + 1) * fresh[0].nbytes > self.budget:
                    break
                self._count += 1
                fresh.append(_copy(self._count, caches, start))
                self._blocks[key] = fresh[-1]
                self.nbytes += fresh[-1].nbytes
            keys.append(key)
            parent = self._blocks[key].number
        # Evaluated at once: a pending copy would keep the batch's arrays from being updated in place.
        mx.eval([(block.keys, block.values) for block in fresh])
        self._touch(keys)
        self._evict()

    @staticmethod
    def tokens(chain: Sequence[Block]) -> int:
        """How many tokens a chain of blocks holds."""
        return len(chain) * BLOCK_TOKENS

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self.nbytes = 0

    def _touch(self, chain: Sequence[_Key]) -> None:
        # Children first: a parent is then always more recent than its children, so the oldest is always a leaf.
        for key in reversed(chain):
            self._blocks.move_to_end(key)

    def _evict(self) -> None:
        while self.nbytes > self.budget:
            _, block = self._blocks.popitem(last=False)
            self.nbytes -= block.nbytes
            self.evictions += 1


def _copy(number: int, caches: Sequence[KVCache], start: int) -> Block:
    end = start + BLOCK_TOKENS
    keys = [cache.keys[0, :, start:end] for cache in caches if cache.keys is not None]
    values = [cache.values[0, :, start:end] for cache in caches if cache.values is not None]
    return Block(number, mx.stack(keys), mx.stack(values))


def restore(blocks: Sequence[Block], caches: Sequence[KVCache]) -> None:
    """Fill empty ``caches`` (one a layer) with the positions that ``blocks`` hold."""
    keys = mx.concatenate([block.keys for block in blocks], axis=2)
    values = mx.concatenate([block.values for block in blocks], axis=2)
    for layer, cache in enumerate(caches):
        cache.keys, cache.values = keys[layer : layer + 1], values[layer : layer + 1]
        cache.offset = keys.shape[2]
