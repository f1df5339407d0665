"""What of a prompt need not run through the model: found in the prefix cache, and put together as it comes from disk.

What is in memory is copied at once, what is on disk in portions, so that a long prefix is never held twice. Everything
here runs on the engine thread.

In a group each process has a disk of its own, with its own part of each block. What depends on that disk, or on how
long it takes, is agreed upon (``PrefixCache.least``) before anything is decided by it: all use what the one with the
least can. A file that passes its checksum fits, since it is what the same process has written.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from jackfield.engine.blocks import (
    BLOCK_TOKENS,
    JOINED_AT_ONCE,
    Block,
    Cache,
    Joint,
    Key,
    Record,
    chain,
    keys_of,
    restore,
)
from jackfield.engine.disk_cache import PATIENCE, Reading
from jackfield.engine.request import CacheUse, MissReason, PromptImage

if TYPE_CHECKING:
    from jackfield.engine.prefix_cache import PrefixCache

logger = logging.getLogger(__name__)

PORTION_BYTES = 32 << 20
"""What a lookup has read from disk at once."""
LOOK_SECONDS = 0.05
"""Who waits for the disk looks this often whether it still answers."""


class Lookup:
    """What was found for a prompt, some of it perhaps still to be read from disk.

    Its own copy of that is as large as what it will put into the caches. ``restore`` or ``cancel`` it.
    """

    def __init__(
        self, cache: "PrefixCache", tokens: Sequence[int], images: Iterable[PromptImage] = (), root: bytes = b""
    ) -> None:
        self._cache = cache
        self._generation = cache.generation
        self._links = chain(tokens, images, root) if cache.enabled else []
        self._joint: Joint | None = None
        self._state: Block | None = None
        self._taken: set[Key] = set()
        """What is in the two."""
        self._read: set[Key] = set()
        """What of that came from disk."""
        self._reading: Reading | None = None
        self._asked = 0
        """Bytes that this one has in flight."""
        self._in_line = time.monotonic()
        """Since when it waits for its turn to read."""
        self._block_bytes = PORTION_BYTES
        self._fits = True
        """Whether memory has room for what comes from disk."""
        self._unreadable: set[Key] = set()
        self._damaged = self._lost = self._gave_up = False
        self._failure: Exception | None = None
        self._plan()

    # --- What to take --------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Decide what to take."""
        cache, links = self._cache, self._links
        own = next((n for n, link in enumerate(links) if not self._has(("kv", link.digest))), len(links))
        self._known = self._agreed(own)
        most = self._known if self._joint is None else min(self._known, self._joint.count)
        self._usable = self._last_snapshot(most) if cache.stateful else most
        self._keys = keys_of(links[: self._usable], cache.stateful)
        self._pinned = frozenset(self._keys)
        cache.touch([*self._keys, *keys_of(links[self._usable : self._known], False)])

    def _last_snapshot(self, most: int) -> int:
        while most and (last := self._agreed(self._own_last_snapshot(most))) < most:
            # Whoever has the later ones may lack this one.
            most = last
        return most

    def _own_last_snapshot(self, most: int) -> int:
        links = self._links
        return next((n for n in range(most, 0, -1) if self._has(("state", links[n - 1].digest))), 0)

    def _agreed(self, count: int) -> int:
        """How many blocks all processes have; ``count`` is how many this one has."""
        agreed = self._cache.least(count) if self._links else count
        self._lost = self._lost or agreed < count
        return agreed

    def _has(self, key: Key) -> bool:
        return key in self._taken or self._cache.find(key) is not None or self._readable(key)

    def _readable(self, key: Key) -> bool:
        disk = self._cache.disk
        return disk is not None and not self._gave_up and key not in self._unreadable and disk.holds(key)

    @property
    def branch(self) -> int:
        """How many tokens other prompts share with this one beyond what can be taken over, a multiple of BLOCK_TOKENS.

        Where it is worth while to stop reading this prompt and store a snapshot; 0 when that is nowhere.
        """
        return self._known * BLOCK_TOKENS if self._known > self._usable else 0

    @property
    def nbytes(self) -> int:
        """Bytes of what it has put together."""
        return (self._joint.nbytes if self._joint else 0) + (self._state.nbytes if self._state else 0)

    # --- Taking it -----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether everything is here; if it is not, goes on with it as far as nobody has to wait.

        When a file turns out to be gone or bad, what is left is taken. Gives up by itself when the disk does not
        answer. In a group all have to ask, and get the same answer.
        """
        while not self._complete and self._goes_on():
            pass
        return self._complete

    @property
    def _complete(self) -> bool:
        dropped = self._failure is not None or self._generation != self._cache.generation
        return dropped or (self._reading is None and self._taken.issuperset(self._keys))

    def _goes_on(self) -> bool:
        """Take what is here, and ask for what is on disk; False when that has to be waited for."""
        if self._reading is None:
            self._take({})
        elif here := self._cache.least(self._here(self._reading)):
            self._collect(self._reading, here - 1)
        else:
            return False
        return self._complete or self._ask()

    def _here(self, reading: Reading) -> int:
        """0 while more is worth waiting for, then one more than the blocks that have been read."""
        if not reading.done.is_set() and not self._is_late(reading):
            return 0
        return len(reading.records) + 1

    def _is_late(self, reading: Reading) -> bool:
        if self._cache.disk is None or not self._cache.disk.late(reading):
            return False
        if not self._gave_up:
            logger.warning("The prefix cache on disk does not answer in time; a prompt is computed instead.")
        self._gave_up = True
        return True

    def _collect(self, reading: Reading, count: int) -> None:
        """Take so many blocks of what has been read, and no more of it."""
        self._reading, reading.cancelled = None, True
        self._take({record.key: record for record in reading.records[:count]})
        self._end_reading()
        if count < len(reading.keys):
            self._damaged |= reading.damaged
            self._lost |= count < len(reading.records)
            self._unreadable.add(reading.keys[count])
            self._plan()

    def _take(self, records: dict[Key, Record]) -> None:
        """Copy what is in memory, or in ``records``, up to the first that is not."""
        try:
            while blocks := self._next_blocks(records):
                if blocks[0].kind == "state":
                    self._state = blocks[0]
                else:
                    self._joint = self._joint or Joint(self._usable)
                    self._joint.put([block.piece for block in blocks])
                    self._block_bytes = self._cache.size(blocks[0])
                self._taken.update(block.key for block in blocks)
        except (LookupError, TypeError, ValueError) as error:
            self._failure = error

    def _next_blocks(self, records: dict[Key, Record]) -> list[Block]:
        blocks: list[Block] = []
        for key in self._wanted(JOINED_AT_ONCE):
            block = self._cache.find(key)
            if block is None and key in records:
                block = records.pop(key).block()
                self._read.add(key)
                self._fits = self._fits and self._cache.adopt(block, self._pinned)
            if block is None or (blocks and block.kind != blocks[0].kind):
                break
            blocks.append(block)
        return blocks

    def _wanted(self, count: int) -> list[Key]:
        """The next to take. The state comes first, since without it the rest is of no use."""
        state = [key for key in self._keys[self._usable :] if key not in self._taken]
        done = self._joint.done if self._joint else 0
        return state or self._keys[done : min(done + count, self._usable)]

    def _ask(self) -> bool:
        """Have the next portion read; False when it is not its turn yet."""
        wanted = self._wanted(max(1, PORTION_BYTES // self._block_bytes))
        portion = wanted[: self._agreed(len(list(takewhile(self._readable, wanted))))]
        disk = self._cache.disk
        if disk is None or not portion:
            # It was there, and has had to go or cannot be read now.
            self._lost = True
            self._plan()
            return True
        if not self._cache.begin_reading(nbytes := len(portion) * self._block_bytes):
            return self._has_waited()
        self._asked, self._reading = nbytes, disk.read(portion)
        return True

    def _has_waited(self) -> bool:
        """Give up when others have kept the disk busy for too long; tells whether it has."""
        if self._cache.least(int(time.monotonic() - self._in_line <= PATIENCE)):
            return False
        self._gave_up = True
        self._plan()
        return True

    def _end_reading(self) -> None:
        self._cache.end_reading(self._asked)
        self._asked, self._in_line = 0, time.monotonic()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is here; tells whether it is.

        In one process it may be for at most ``timeout`` seconds: those of a group would not look equally often.
        """
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while not self.ready and (left := deadline - time.monotonic()) > 0:
            self.rest(min(left, LOOK_SECONDS))
        return self.ready

    def rest(self, seconds: float) -> None:
        """Let the disk work for so long, or until it has read what it was asked for."""
        if self._reading is not None:
            self._reading.done.wait(seconds)
        else:
            time.sleep(seconds)

    def cancel(self) -> None:
        """Read no further; for a request that nobody waits for any more."""
        if self._reading is not None:
            self._reading.cancelled = True
            self._end_reading()
            self._reading = None
        self._gave_up = True

    # --- The end -------------------------------------------------------------------------------------------------

    def restore(self, caches: Sequence[Cache]) -> CacheUse:
        """Fill empty ``caches``, one a layer, with what was found; waits for it if it is not ``ready``.

        What came from disk was put into memory, as far as the budget allows. What turns out not to fit the caches is
        forgotten, and they stay empty.
        """
        self.wait()
        if self._generation != self._cache.generation:
            self.cancel()
            return CacheUse(miss="evicted")
        use = CacheUse(self._usable * BLOCK_TOKENS, self._from_disk(), self._miss())
        try:
            self._fill(caches)
        except (LookupError, TypeError, ValueError) as error:
            logger.warning("What the prefix cache had does not fit the model, and is forgotten: %s", error)
            self.cancel()
            self._cache.forget(self._links)
            return CacheUse(miss="damaged")
        return use

    def _fill(self, caches: Sequence[Cache]) -> None:
        if self._failure is not None:
            raise self._failure
        if self._joint is not None and self._usable:
            layers, self._joint = self._joint.layers(self._usable), None
            restore(layers, self._state.piece if self._state else None, caches)
        self._cache.touch(self._keys)
        self._cache.hit(self._keys)

    def _from_disk(self) -> int:
        # A state stands for all tokens before it.
        if self._keys[self._usable :] and self._keys[-1] in self._read:
            return self._usable * BLOCK_TOKENS
        return BLOCK_TOKENS * sum(key in self._read for key in self._keys)

    def _miss(self) -> MissReason | None:
        if not self._cache.enabled:
            return "off"
        if not self._links:
            return "short"
        if self._usable == len(self._links):
            return None
        if self._damaged:
            return "damaged"
        if self._lost or self._gave_up:
            return "evicted"
        return self._without_snapshot() if self._known > self._usable else self._without_block()

    def _without_snapshot(self) -> MissReason:
        beyond = self._links[self._usable : self._known]
        return "evicted" if self._cache.had(("state", link.digest) for link in beyond) else "no_snapshot"

    def _without_block(self) -> MissReason:
        if self._cache.had([("kv", self._links[self._known].digest)]):
            return "evicted"
        return "diverged" if self._known else "new"
