"""Prefix caches of a group, each with its own part of the blocks and its own disk, hold and find the same.

Each process is a thread here: what they agree upon goes through a barrier, which breaks when they do not ask as often.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from jackfield.engine import lookup, prefix_cache
from jackfield.engine.blocks import BLOCK_TOKENS, chain
from jackfield.engine.disk_cache import DiskCache
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import CacheUse

LAYERS = {False: (3, 3, 2), True: (3, 3, 3)}
"""Of each process, without windows and with: the one with fewer counts as many. Those with windows are the same."""

MOST = 3

LAYER_BYTES = BLOCK_TOKENS * 2 * 2 * 4
WINDOW = 16


@dataclass
class Together:
    """What the processes say to each other."""

    size: int
    said: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._barrier = threading.Barrier(self.size, timeout=20)

    def least(self, rank: int, number: int) -> int:
        self.said[rank] = number
        self._barrier.wait()
        agreed = min(self.said.values())
        self._barrier.wait()
        return agreed


def counted(layers: int) -> Callable[[int], int]:
    return lambda nbytes: nbytes // layers * MOST


def open_cache(folder: Path, rank: int, together: Together, budget: int, *, stateful: bool) -> PrefixCache:
    disk = DiskCache(folder, 1 << 30, f"rank {rank}")
    return PrefixCache(
        budget,
        disk,
        stateful=stateful,
        counted=counted(LAYERS[stateful][rank]),
        least=lambda number: together.least(rank, number),
    )


def empty(layers: int, *, stateful: bool) -> list[KVCache | RotatingKVCache]:
    return [RotatingKVCache(WINDOW) if stateful and layer == 0 else KVCache() for layer in range(layers)]


def filled(tokens: Sequence[int], layers: int, *, stateful: bool) -> list[KVCache | RotatingKVCache]:
    caches = empty(layers, stateful=stateful)
    values = mx.cumsum(mx.array(tokens, dtype=mx.float32))[None, None, :, None]
    for layer, cache in enumerate(caches):
        array = mx.broadcast_to(values + layer, (1, 1, len(tokens), 2))
        cache.update_and_fetch(array, -array)
    return caches


def blocks(values: Sequence[int]) -> list[int]:
    return [value for value in values for _ in range(BLOCK_TOKENS)]


Seen = list[tuple[object, ...]]


def live(cache: PrefixCache, rank: int, script: random.Random, own: random.Random, *, stateful: bool) -> Seen:
    """What happens to one process of a group, and what can be seen of it afterwards; ``own`` is its own bad luck."""
    layers, seen = LAYERS[stateful][rank], []
    for _ in range(12):
        prompts = [[script.randint(1, 2) for _ in range(script.randint(1, 7))] for _ in range(3)]
        lookups = [cache.lookup(blocks(prompt)) for prompt in prompts]
        if own.random() < 0.3:
            spoil(cache.disk, own)
        waiting = list(lookups)
        while waiting:
            waiting = [one for one in waiting if not one.ready]
            if waiting:
                waiting[0].rest(0.01)
        for one, prompt in zip(lookups, prompts, strict=True):
            caches = empty(layers, stateful=stateful)
            use = one.restore(caches)
            assert right(caches, prompt, use, stateful=stateful)
            seen.append((use.tokens, use.from_disk, one.branch))
            tokens = blocks(prompt)
            cache.store(tokens, filled(tokens, layers, stateful=stateful), stateful and script.random() < 0.7)
        if script.random() < 0.5:
            cache.shrink(script.randint(0, 3) * MOST * LAYER_BYTES)
        seen.append((cache.nbytes, cache.in_flight, cache.evictions, *cache._blocks))
    return seen


def right(caches: Sequence[KVCache | RotatingKVCache], prompt: Sequence[int], use: CacheUse, *, stateful: bool) -> bool:
    if not use.tokens:
        return all(cache.empty() for cache in caches)
    expected = filled(blocks(prompt)[: use.tokens], len(caches), stateful=stateful)
    # Of arrays that may be longer than what they hold.
    ends = [
        (one.keys[..., -WINDOW:, :], other.keys[..., : use.tokens, :])
        for one, other in zip(caches, expected, strict=True)
    ]
    return all(bool(mx.array_equal(one, other[..., -WINDOW:, :])) for one, other in ends)


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".kv", ".state"})


def spoil(disk: DiskCache | None, own: random.Random) -> None:
    assert disk is not None
    files = kept(disk.folder)
    if not files:
        return
    path = own.choice(files)
    match own.choice(["lose", "damage", "slow"]):
        case "lose":
            path.unlink(missing_ok=True)
        case "damage":
            path.write_bytes(b"not a block")
        case "slow":
            load = disk._load
            disk._load = lambda *arguments: (time.sleep(own.random() / 20), load(*arguments))[1]  # type: ignore[method-assign]


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_all_find_and_hold_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, stateful: bool) -> None:
    """Whatever becomes of anybody's files, in two lives one after the other."""
    monkeypatch.setattr(lookup, "PORTION_BYTES", 3 * MOST * LAYER_BYTES)
    monkeypatch.setattr(prefix_cache, "READ_BYTES", 4 * MOST * LAYER_BYTES)
    monkeypatch.setattr(lookup, "PATIENCE", 0.05)
    for life in range(2):
        together = Together(len(LAYERS[stateful]))

        def process(rank: int, life: int = life, together: Together = together) -> Seen:
            script, own = random.Random(f"{seed} {life}"), random.Random(f"{seed} {life} {rank}")
            for path in own.sample(files := kept(tmp_path / str(rank)), len(files) // 4):
                path.unlink()
            budget = 5 * MOST * LAYER_BYTES
            cache = open_cache(tmp_path / str(rank), rank, together, budget, stateful=stateful)
            seen = live(cache, rank, script, own, stateful=stateful)
            cache.flush()
            cache.close()
            return seen

        with ThreadPoolExecutor(len(LAYERS[stateful])) as threads:
            first, *others = threads.map(process, range(len(LAYERS[stateful])))
        assert all(other == first for other in others)
        assert any(one[1] for one in first), "something came from disk"


def test_a_snapshot_that_all_have(tmp_path: Path) -> None:
    """Of three, one lacks the last and another one the one before."""
    prompts = [[1], [1, 2], [1, 2, 3]]

    def write(rank: int) -> None:
        cache = open_cache(tmp_path / str(rank), rank, Together(1), 1 << 20, stateful=True)
        for prompt in prompts:
            cache.store(blocks(prompt), filled(blocks(prompt), MOST, stateful=True), snapshot=True)
        cache.flush()
        cache.close()

    for rank in range(3):
        write(rank)
    last = chain(blocks(prompts[-1]))
    for rank, number in ((0, 2), (1, 1)):
        next((tmp_path / str(rank)).rglob(f"{last[number].digest.hex()}.state")).unlink()
    together = Together(3)

    def read(rank: int) -> int:
        cache = open_cache(tmp_path / str(rank), rank, together, 1 << 20, stateful=True)
        use = cache.lookup(blocks(prompts[-1])).restore(empty(MOST, stateful=True))
        cache.close()
        return use.tokens

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(read, range(3))) == [BLOCK_TOKENS] * 3
