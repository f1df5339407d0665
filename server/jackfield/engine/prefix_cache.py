"""The prefix cache: what was computed for prompts seen before, in blocks that all requests share.

Blocks are in memory under a byte budget and, if there is a :class:`DiskCache`, on disk. On both a block is found by
the digest of its tokens (and images) and of all that come before them, so a prompt takes over the longest chain of
blocks that starts it, whoever it came from. When a model has layers whose state cannot be cut into positions (see
``blocks``), a chain can be used only up to a block after which there is a snapshot of that state.

Everything here runs on the engine thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

import mlx.core as mx

from jackfield.engine.blocks import (
    BLOCK_OVERHEAD,
    BLOCK_TOKENS,
    Block,
    Cache,
    Key,
    Link,
    chain,
    cut,
    keys_of,
    reusable,
    snapshot,
    stateful,
)
from jackfield.engine.disk_cache import DiskCache
from jackfield.engine.lookup import Lookup
from jackfield.engine.request import PromptImage

GHOSTS = 1 << 16
"""Blocks that are remembered after they have had to go, to tell why a request missed them."""
BLOCKS_AT_ONCE = 8
"""Blocks that are copied in one evaluation."""
PERSIST_BYTES = 32 << 20
"""What a call of ``store`` copies for the disk at most, of blocks that have proved useful: about 10 ms."""
SPILL_BYTES = 16 << 20
"""What may wait for the disk when memory is to be freed: a block that waits takes as much as before."""
READ_BYTES = 64 << 20
"""What all lookups together may have read from disk, or be reading, before it is put to its place."""


class PrefixCache:
    """Blocks with a byte budget and least-recently-used eviction.

    The budget is kept at every moment: room is made before anything is copied. A block is more recent than those that
    follow it and than the snapshot after it, so the oldest is always one that nothing else needs.

    Args:
        budget: bytes that the blocks in memory may take in all.
        disk: where blocks go that have been of use, or have to make room, or are here at the end.
        stateful: whether the model has layers that need snapshots; see :func:`blocks.stateful`.
        counted: says how much a block's bytes count; see :meth:`Runner.counted`.
        least: says which number is the least of those that a group's processes have, which have parts of one model;
            see :meth:`Collective.least`. All have a disk, or none has.
    """

    def __init__(
        self,
        budget: int,
        disk: DiskCache | None = None,
        *,
        stateful: bool = False,
        counted: Callable[[int], int] = int,
        least: Callable[[int], int] = int,
    ) -> None:
        self.disk = disk
        self.stateful = stateful
        self._counted, self._least = counted, least
        self.nbytes = 0
        """Of all blocks; the allocator's rounding up does not count."""
        self.in_flight = 0
        """Bytes that lookups have asked the disk for and not put to their place, in addition to ``nbytes``."""
        self.evictions = 0
        self.generation = 0
        """Grows whenever everything is forgotten; what was found before that is suspect."""
        self._configured = self._budget = budget
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        """Least recently used first."""
        self._ghosts: OrderedDict[Key, None] = OrderedDict()
        self._useful: dict[Key, None] = {}
        """Blocks that have been hit and are not on disk yet."""

    @property
    def budget(self) -> int:
        """Bytes that the blocks in memory may take; lowering it evicts."""
        return self._budget

    @budget.setter
    def budget(self, nbytes: int) -> None:
        self._budget = nbytes
        self.shrink(nbytes)

    @property
    def enabled(self) -> bool:
        """Whether anything can be found at all, if not at this moment: memory may be short."""
        return max(self._configured, self._budget) > 0 or self.disk is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes of memory that blocks take, beyond ``nbytes``, while they wait to be written to disk."""
        return 0 if self.disk is None else self.disk.queued_bytes

    def least(self, number: int) -> int:
        """The least of a group's numbers, each from 0 on; what memory alone decides is the same in all of them."""
        return number if self.disk is None else self._least(number)

    def lookup(self, tokens: Sequence[int], images: Iterable[PromptImage] = (), root: bytes = b"") -> Lookup:
        """The longest chain of blocks that starts ``tokens``: all of a prompt that need not run through the model."""
        return Lookup(self, tokens, images, root)

    def store(
        self,
        tokens: Sequence[int],
        caches: Sequence[Cache],
        snapshot: bool = False,
        images: Iterable[PromptImage] = (),
        root: bytes = b"",
    ) -> None:
        """Keep what ``caches``, one a layer, hold for ``tokens``, as far as it is not here already.

        Args:
            tokens: what the caches hold, from the first position on; of a block that is not whole nothing is kept.
            caches: mlx-lm's, of one sequence.
            snapshot: also keep the state of layers that are not positional; ``caches`` then stand exactly at the end
                of ``tokens``, a multiple of BLOCK_TOKENS. Without effect when there are no such layers.
            images: what some of the tokens stand for.
            root: see `chain`.

        Raises:
            ValueError: the caches need snapshots but ``stateful`` was not said, they hold fewer positions than
                ``tokens``, or ``tokens`` end within a block although a snapshot is asked for.
        """
        if not self._budget:
            return
        if stateful(caches) and not self.stateful:
            raise ValueError("these caches need snapshots")
        if snapshot and self.stateful and len(tokens) % BLOCK_TOKENS:
            raise ValueError("a snapshot stands at the end of a block")
        if reusable(caches):
            self._store(chain(tokens, images, root), caches, snapshot and self.stateful)
            self.persist(PERSIST_BYTES)

    def _store(self, links: Sequence[Link], caches: Sequence[Cache], with_state: bool) -> None:
        keys = keys_of(links, with_state)
        self.touch(keys)
        state = [_state(links[-1], caches)] if with_state and links and keys[-1] not in self._blocks else []
        try:
            self._copy(links, caches, state, frozenset(keys))
        finally:
            self.touch(keys)

    def _copy(self, links: Sequence[Link], caches: Sequence[Cache], state: list[Block], pinned: frozenset[Key]) -> None:
        """Take in what is missing while there is room for it, and for ``state`` after it."""
        reserved = sum(map(self.size, state))
        missing = [(n, link) for n, link in enumerate(links) if ("kv", link.digest) not in self._blocks]
        for first in range(0, len(missing), BLOCKS_AT_ONCE):
            fresh = [_positions(n, link, caches) for n, link in missing[first : first + BLOCKS_AT_ONCE]]
            fitting = self._fitting(fresh, reserved, pinned)
            self._add(fitting)
            if len(fitting) < len(fresh):
                return
        self._add(self._fitting(state, 0, pinned))

    def _fitting(self, blocks: list[Block], more: int, pinned: frozenset[Key]) -> list[Block]:
        """The first of ``blocks`` for which, and for ``more`` bytes, there is or can be made room."""
        for n, block in enumerate(blocks):
            more += self.size(block)
            if not self._make_room(more, pinned):
                return blocks[:n]
        return blocks

    def _add(self, blocks: Sequence[Block]) -> None:
        """Take in blocks for which there is room."""
        # Evaluated at once: a pending copy would keep all of the cache that it is from.
        mx.eval([block.piece.arrays for block in blocks])
        for block in blocks:
            self._blocks[block.key] = block
            self.nbytes += self.size(block)

    def adopt(self, block: Block, pinned: frozenset[Key]) -> bool:
        """Take in a block from disk if the budget allows, without evicting any that is ``pinned``; tells whether."""
        if block.key not in self._blocks:
            if not self._make_room(self.size(block), pinned):
                return False
            self._add([block])
        return True

    def begin_reading(self, nbytes: int) -> bool:
        """Whether a lookup may have so many bytes read from disk now; it says when they are read no more."""
        if self.in_flight and self.in_flight + nbytes > READ_BYTES:
            return False
        self.in_flight += nbytes
        return True

    def end_reading(self, nbytes: int) -> None:
        """What was read has been put to its place."""
        self.in_flight -= nbytes

    def find(self, key: Key) -> Block | None:
        """A block that is in memory."""
        return self._blocks.get(key)

    def touch(self, keys: Sequence[Key]) -> None:
        """Mark blocks of a chain, parents first, as just used."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def hit(self, keys: Iterable[Key]) -> None:
        """Note blocks that were of use; sooner or later they are written to disk."""
        if self.disk is not None:
            self._useful.update((key, None) for key in keys if key in self._blocks and not self.disk.holds(key))

    def persist(self, nbytes: int) -> None:
        """Give blocks that have been of use to the disk's thread, but not more than ``nbytes`` in one call."""
        while self._useful and nbytes > 0:
            key = next(iter(self._useful))
            del self._useful[key]
            nbytes -= self._blocks[key].nbytes
            self._write(self._blocks[key])

    def _write(self, block: Block, age: int = 0, timeout: float = 0) -> None:
        if self.disk is not None and self.disk.wants(block.key, block.nbytes, timeout):
            self.disk.write(block.record(), age)

    def size(self, block: Block) -> int:
        """Bytes that it takes in all, as they count."""
        return self._counted(block.piece.nbytes) + BLOCK_OVERHEAD

    def _make_room(self, nbytes: int, pinned: frozenset[Key]) -> bool:
        """Evict until ``nbytes`` more fit, but nothing that is ``pinned``; False if they do not."""
        while self.nbytes + nbytes > self._budget:
            oldest = next(iter(self._blocks), None)
            if oldest is None or oldest in pinned:
                return False
            self._evict()
        return True

    def _evict(self, write: bool = True) -> None:
        block = self._forget(next(iter(self._blocks)))
        self.evictions += 1
        if write:
            self._write(block)

    def _forget(self, key: Key) -> Block:
        block = self._blocks.pop(key)
        self.nbytes -= self.size(block)
        self._useful.pop(key, None)
        self._remember(key)
        return block

    def _remember(self, key: Key) -> None:
        self._ghosts[key] = None
        self._ghosts.move_to_end(key)
        if len(self._ghosts) > GHOSTS:
            self._ghosts.popitem(last=False)

    def had(self, keys: Iterable[Key]) -> bool:
        """Whether any of these was here and has had to go."""
        while self.disk is not None and self.disk.lost:
            self._remember(self.disk.lost.popleft())
        return any(key in self._ghosts for key in keys)

    def shrink(self, nbytes: int, write: bool = True) -> int:
        """Evict until at most ``nbytes`` are held; returns how many bytes that made free.

        With ``write``, blocks go to disk as long as not too much waits for it, which is not free yet.
        """
        before = self.nbytes
        while self._blocks and self.nbytes > nbytes:
            self._evict(write and self.queued_bytes < SPILL_BYTES)
        return before - self.nbytes

    def discard(self, tokens: Sequence[int], images: Iterable[PromptImage] = (), root: bytes = b"") -> None:
        """Forget all blocks that start ``tokens``, on disk too, since they turned out to be wrong."""
        self.forget(chain(tokens, images, root))

    def forget(self, links: Sequence[Link]) -> None:
        """Forget all blocks of a chain, on disk too."""
        keys = [*keys_of(links, False), *(("state", link.digest) for link in links)]
        for key in keys:
            if key in self._blocks:
                self._forget(key)
        if self.disk is not None:
            self.disk.delete(keys)

    def clear(self) -> None:
        """Forget everything in memory, and write none of it to disk: nobody knows whether it is right.

        Lookups that are under way find nothing any more.
        """
        self.generation += 1
        for key in list(self._blocks):
            self._forget(key)
        if self.disk is not None:
            self.disk.forget_queue()

    def flush(self, timeout: float = 10.0) -> None:
        """Give everything in memory to the disk's thread, waiting for at most ``timeout`` seconds in all."""
        deadline = monotonic() + timeout
        for age, block in enumerate(reversed(self._blocks.values())):
            self._write(block, age, max(deadline - monotonic(), 0))

    def close(self, timeout: float = 10.0) -> None:
        """Write what waits to be written, for at most ``timeout`` seconds, and let the disk go."""
        if self.disk is not None:
            self.disk.close(timeout)


def _positions(number: int, link: Link, caches: Sequence[Cache]) -> Block:
    return Block("kv", link, cut(caches, number * BLOCK_TOKENS, (number + 1) * BLOCK_TOKENS))


def _state(link: Link, caches: Sequence[Cache]) -> Block:
    return Block("state", link, snapshot(caches))
