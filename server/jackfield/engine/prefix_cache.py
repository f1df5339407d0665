"""The prefix cache: what was computed for prompts seen before, in blocks that all requests share.

Blocks are in memory under a byte budget and, if there is a :class:`DiskCache`, on disk. On both a block is found by
the digest of its tokens and all that come before them, so a prompt takes over the longest chain of blocks that starts
it, whoever it came from. When a model has layers whose state cannot be cut into positions (see ``blocks``), a chain can
be used only up to a block after which there is a snapshot of that state.

Everything here runs on the engine thread.
"""

import logging
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from time import monotonic

import mlx.core as mx

from jackfield.engine.blocks import (
    BLOCK_TOKENS,
    Block,
    Cache,
    Key,
    Link,
    Record,
    chain,
    cut,
    join,
    restore,
    reusable,
    snapshot,
    stateful,
)
from jackfield.engine.disk_cache import DiskCache, Reading
from jackfield.engine.request import CacheUse, MissReason

logger = logging.getLogger(__name__)

GHOSTS = 1 << 16
"""Blocks that are remembered after they have had to go, to tell why a request missed them."""
BLOCKS_AT_ONCE = 8
"""Blocks that are copied in one evaluation."""
PERSIST_BYTES = 32 << 20
"""What a call of ``store`` copies for the disk at most, of blocks that have proved useful: about 10 ms."""
SPILL_BYTES = 16 << 20
"""What may wait for the disk when memory is to be freed: a block that waits takes as much as before."""
LOOK_SECONDS = 0.05
"""Who waits for the disk looks this often whether it still answers."""


class PrefixCache:
    """Blocks with a byte budget and least-recently-used eviction.

    The budget is kept at every moment: room is made before anything is copied. A block is more recent than those that
    follow it and than the snapshot after it, so the oldest is always one that nothing else needs.

    Args:
        budget: bytes that the blocks in memory may take in all.
        disk: where blocks go that have been of use, or have to make room, or are here at the end.
        stateful: whether the model has layers that need snapshots; see :func:`blocks.stateful`.
    """

    def __init__(self, budget: int, disk: DiskCache | None = None, *, stateful: bool = False) -> None:
        self.disk = disk
        self.stateful = stateful
        self.nbytes = 0
        """Of all blocks; the allocator's rounding up does not count."""
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

    def lookup(self, tokens: Sequence[int]) -> "Lookup":
        """The longest chain of blocks that starts ``tokens``: all of a prompt that need not run through the model."""
        return Lookup(self, tokens)

    def store(self, tokens: Sequence[int], caches: Sequence[Cache], snapshot: bool = False) -> None:
        """Keep what ``caches``, one a layer, hold for ``tokens``, as far as it is not here already.

        Args:
            tokens: what the caches hold, from the first position on; of a block that is not whole nothing is kept.
            caches: mlx-lm's, of one sequence.
            snapshot: also keep the state of layers that are not positional; ``caches`` then stand exactly at the end
                of ``tokens``, a multiple of BLOCK_TOKENS. Without effect when there are no such layers.

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
            self._store(chain(tokens), caches, snapshot and self.stateful)
            self.persist(PERSIST_BYTES)

    def _store(self, links: Sequence[Link], caches: Sequence[Cache], with_state: bool) -> None:
        keys = _keys(links, with_state)
        self.touch(keys)
        state = [_state(links[-1], caches)] if with_state and links and keys[-1] not in self._blocks else []
        try:
            self._copy(links, caches, state, frozenset(keys))
        finally:
            self.touch(keys)

    def _copy(self, links: Sequence[Link], caches: Sequence[Cache], state: list[Block], pinned: frozenset[Key]) -> None:
        """Take in what is missing while there is room for it, and for ``state`` after it."""
        reserved = sum(block.nbytes for block in state)
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
            more += block.nbytes
            if not self._make_room(more, pinned):
                return blocks[:n]
        return blocks

    def _add(self, blocks: Sequence[Block]) -> None:
        """Take in blocks for which there is room."""
        # Evaluated at once: a pending copy would keep all of the cache that it is from.
        mx.eval([block.piece.arrays for block in blocks])
        for block in blocks:
            self._blocks[block.key] = block
            self.nbytes += block.nbytes

    def adopt(self, blocks: Iterable[Block], keys: Sequence[Key]) -> Generator[Block, None, None]:
        """Pass on ``blocks``, those of a chain, parents first, and take them in as far as the budget allows."""
        self.touch(keys)
        pinned, fits = frozenset(keys), True
        try:
            for block in blocks:
                if fits and block.key not in self._blocks:
                    fits = self._make_room(block.nbytes, pinned)
                    self._add([block] if fits else [])
                yield block
        finally:
            self.touch(keys)

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
        self.nbytes -= block.nbytes
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

    def discard(self, tokens: Sequence[int]) -> None:
        """Forget all blocks that start ``tokens``, on disk too, since they turned out to be wrong."""
        self.forget(chain(tokens))

    def forget(self, links: Sequence[Link]) -> None:
        """Forget all blocks of a chain, on disk too."""
        keys = [*_keys(links, False), *(("state", link.digest) for link in links)]
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


class Lookup:
    """What was found for a prompt, some of it perhaps still to be read from disk.

    Holds on to what it has found, even if that is evicted meanwhile and those bytes no longer count; so it should
    not live long: ``restore`` or ``cancel`` it.
    """

    def __init__(self, cache: PrefixCache, tokens: Sequence[int]) -> None:
        self._cache = cache
        self._generation = cache.generation
        self._links = chain(tokens) if cache.enabled else []
        self._blocks: dict[Key, Block] = {}
        self._records: dict[Key, Record] = {}
        self._reading: Reading | None = None
        self._unreadable: set[Key] = set()
        self._damaged = False
        self._gave_up = False
        self._plan()

    def _plan(self) -> None:
        """Decide what to take, and begin to read what of it is on disk."""
        cache, links = self._cache, self._links
        self._known = next((n for n, link in enumerate(links) if not self._has(("kv", link.digest))), len(links))
        self._usable = self._last_snapshot() if cache.stateful else self._known
        self._keys = _keys(links[: self._usable], cache.stateful)
        self._blocks = {key: block for key in self._keys if (block := self._blocks.get(key) or cache.find(key))}
        cache.touch([*self._keys, *_keys(links[self._usable : self._known], False)])
        missing = [key for key in self._keys if key not in self._blocks and key not in self._records]
        self._reading = cache.disk.read(missing) if cache.disk is not None and missing else None

    def _last_snapshot(self) -> int:
        links = self._links
        return next((n for n in range(self._known, 0, -1) if self._has(("state", links[n - 1].digest))), 0)

    def _has(self, key: Key) -> bool:
        cache = self._cache
        in_memory = key in self._blocks or key in self._records or cache.find(key) is not None
        return in_memory or (not self._gave_up and self._readable(key))

    def _readable(self, key: Key) -> bool:
        disk = self._cache.disk
        return disk is not None and disk.holds(key) and key not in self._unreadable

    @property
    def branch(self) -> int:
        """How many tokens other prompts share with this one beyond what can be taken over, a multiple of BLOCK_TOKENS.

        Where it is worth while to stop reading this prompt and store a snapshot; 0 when that is nowhere.
        """
        return self._known * BLOCK_TOKENS if self._known > self._usable else 0

    @property
    def ready(self) -> bool:
        """Whether everything is here; when a file turns out to be gone or bad, reading goes on with what is left.

        Gives up by itself when the disk does not answer.
        """
        while self._reading is not None and self._reading.done.is_set():
            self._collect(self._reading)
        if self._reading is not None and self._cache.disk is not None and self._cache.disk.late(self._reading):
            logger.warning("The prefix cache on disk does not answer in time; a prompt is computed instead.")
            self.give_up()
        return self._reading is None

    def _collect(self, reading: Reading) -> None:
        self._reading = None
        # Its thread may still be adding to it.
        records = list(reading.records)
        self._records.update((record.key, record) for record in records)
        if len(records) < len(reading.keys):
            self._damaged |= reading.damaged
            self._unreadable.add(reading.keys[len(records)])
            self._plan()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is here, for at most ``timeout`` seconds; tells whether it is."""
        deadline = monotonic() + timeout if timeout is not None else float("inf")
        while not self.ready and (left := deadline - monotonic()) > 0:
            if self._reading is not None:
                self._reading.done.wait(min(left, LOOK_SECONDS))
        return self.ready

    def cancel(self) -> None:
        """Read no further; for a request that nobody waits for any more."""
        if self._reading is not None:
            self._reading.cancelled = True

    def give_up(self) -> None:
        """Read no further, and make do with what is in memory, or has been read by now."""
        self._gave_up = True
        if self._reading is not None:
            self.cancel()
            self._collect(self._reading)

    def restore(self, caches: Sequence[Cache]) -> CacheUse:
        """Fill empty ``caches``, one a layer, with what was found; waits for it if it is not ``ready``.

        What came from disk is put into memory, as far as the budget allows. What turns out not to fit the caches is
        forgotten, and they stay empty.
        """
        self.wait()
        if self._generation != self._cache.generation:
            return CacheUse(miss="evicted")
        use = CacheUse(self._usable * BLOCK_TOKENS, self._from_disk(), self._miss())
        try:
            if self._usable:
                self._fill(caches)
        except (LookupError, TypeError, ValueError) as error:
            logger.warning("What the prefix cache had does not fit the model, and is forgotten: %s", error)
            self._cache.forget(self._links)
            return CacheUse(miss="damaged")
        return use

    def _fill(self, caches: Sequence[Cache]) -> None:
        with closing(self._cache.adopt(self._take(), self._keys)) as blocks:
            layers = join((block.piece for block in islice(blocks, self._usable)), self._usable)
            state = next(blocks).piece if self._cache.stateful else None
            restore(layers, state, caches)
        self._cache.hit(self._keys)

    def _take(self) -> Iterator[Block]:
        """All blocks in order, which are not held on to any more."""
        for key in self._keys:
            yield self._blocks.pop(key) if key in self._blocks else self._records.pop(key).block()

    def _from_disk(self) -> int:
        # A state stands for all tokens before it.
        if self._keys[self._usable :] and self._keys[-1] in self._records:
            return self._usable * BLOCK_TOKENS
        return BLOCK_TOKENS * sum(key in self._records for key in self._keys)

    def _miss(self) -> MissReason | None:
        if not self._cache.enabled:
            return "off"
        if not self._links:
            return "short"
        if self._usable == len(self._links):
            return None
        if self._damaged:
            return "damaged"
        if self._gave_up:
            return "evicted"
        return self._without_snapshot() if self._known > self._usable else self._without_block()

    def _without_snapshot(self) -> MissReason:
        beyond = self._links[self._usable : self._known]
        return "evicted" if self._cache.had(("state", link.digest) for link in beyond) else "no_snapshot"

    def _without_block(self) -> MissReason:
        if self._cache.had([("kv", self._links[self._known].digest)]):
            return "evicted"
        return "diverged" if self._known else "new"


def _keys(links: Sequence[Link], with_state: bool) -> list[Key]:
    """The keys of a chain, and of the state after it."""
    keys: list[Key] = [("kv", link.digest) for link in links]
    return [*keys, ("state", links[-1].digest)] if with_state and links else keys


def _positions(number: int, link: Link, caches: Sequence[Cache]) -> Block:
    return Block("kv", link, cut(caches, number * BLOCK_TOKENS, (number + 1) * BLOCK_TOKENS))


def _state(link: Link, caches: Sequence[Cache]) -> Block:
    return Block("state", link, snapshot(caches))
