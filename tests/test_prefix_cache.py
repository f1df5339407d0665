"""The prefix cache: finds what it was given, after the same prefix only, keeps its budget, and says why it missed."""

import threading
import weakref
from collections.abc import Callable
from itertools import pairwise

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache, make_prompt_cache

from clock import clock_of
from jackfield.engine import blocks, disk_cache, prefix_cache
from jackfield.engine.blocks import BLOCK_OVERHEAD, chain
from jackfield.engine.disk_cache import DiskCache
from jackfield.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from jackfield.engine.request import CacheUse
from logits import same_logits
from test_blocks import model, run  # noqa: F401

LAYERS, HEADS, DIMENSION = 2, 1, 2
BLOCK_BYTES = LAYERS * HEADS * BLOCK_TOKENS * DIMENSION * 2 * 4 + BLOCK_OVERHEAD
WINDOW = 16
STATE_BYTES = WINDOW * 2 * 4 + BLOCK_OVERHEAD
PLENTY = 1 << 30


def prefix_sums(tokens) -> mx.array:
    """A number for each position that shows the whole prefix before it, so that a wrong block would be seen."""
    sums, total = [], 0
    for position, token in enumerate(tokens):
        total += (position + 1) * token
        sums.append(float(total % 65536))
    return mx.array(sums)


def caches_for(tokens, hybrid: bool = False) -> list:
    """Caches that have seen ``tokens``; a hybrid's last layer sees a window only."""
    sums, caches = prefix_sums(tokens), empty_caches(hybrid)
    for layer, cache in enumerate(caches):
        size = 1 if isinstance(cache, RotatingKVCache) else DIMENSION
        array = mx.broadcast_to(sums[None, None, :, None] + layer, (1, HEADS, len(tokens), size))
        if tokens:
            cache.update_and_fetch(array, -array)
    return caches


def empty_caches(hybrid: bool = False) -> list:
    return [*(KVCache() for _ in range(LAYERS)), *([RotatingKVCache(WINDOW)] if hybrid else [])]


def use(cache: PrefixCache, tokens) -> CacheUse:
    """What is found for a prompt; it must be right."""
    lookup, caches = cache.lookup(tokens), empty_caches(cache.stateful)
    assert lookup.wait(10)
    found = lookup.restore(caches)
    assert found.tokens % BLOCK_TOKENS == 0
    if found.tokens:
        for mine, expected in zip(caches, caches_for(tokens[: found.tokens], cache.stateful), strict=True):
            assert mine.offset == found.tokens
            count = min(found.tokens, WINDOW) if isinstance(mine, RotatingKVCache) else found.tokens
            assert mx.array_equal(mine.keys[..., -count:, :], expected.keys[..., : found.tokens, :][..., -count:, :])
            assert mx.array_equal(
                mine.values[..., -count:, :], expected.values[..., : found.tokens, :][..., -count:, :]
            )
    return found


def found(cache: PrefixCache, tokens) -> int:
    return use(cache, tokens).tokens


def put(cache: PrefixCache, tokens, snapshot: bool = False) -> None:
    cache.store(tokens, caches_for(tokens, cache.stateful), snapshot)


def block(*values: int) -> list[int]:
    return [value for value in values for _ in range(BLOCK_TOKENS)]


def check(cache: PrefixCache) -> None:
    """The budget is kept, and nothing comes to the front of the queue before what needs it."""
    assert cache.nbytes <= cache.budget
    assert cache.nbytes == sum(one.nbytes for one in cache._blocks.values())
    order = {key: place for place, key in enumerate(cache._blocks)}
    for key, one in cache._blocks.items():
        kind, digest = key
        parent = ("kv", digest if kind == "state" else one.link.parent)
        assert parent == ("kv", b"") or order[parent] > order[key]


@pytest.fixture
def watched(monkeypatch):
    """Whenever blocks are about to be copied, they and what is held fit in the budget together."""
    add = PrefixCache._add

    def watch(cache, blocks):
        assert cache.nbytes + sum(one.nbytes for one in blocks) <= cache.budget
        add(cache, blocks)

    monkeypatch.setattr(PrefixCache, "_add", watch)


CONVERSATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "use", "shrink", "budget"]), st.lists(st.integers(1, 3), max_size=6)),
    min_size=1,
    max_size=16,
)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("stateful", [False, True])
def test_what_is_found_is_right_and_the_budget_is_kept(stateful):
    @settings(max_examples=40, deadline=None)
    @given(CONVERSATIONS, st.integers(0, 9))
    def always(steps, size):
        cache = PrefixCache(size * BLOCK_BYTES, stateful=stateful)
        for action, values in steps:
            tokens = block(*values)
            if action == "put":
                put(cache, tokens, snapshot=stateful)
                whole = len(values) * BLOCK_BYTES + stateful * STATE_BYTES <= cache.budget
                if whole:
                    assert found(cache, tokens) == len(tokens)
            elif action == "use":
                found(cache, tokens)
            elif action == "shrink":
                before = cache.nbytes
                assert cache.shrink(len(values) * BLOCK_BYTES) == before - cache.nbytes
                assert cache.nbytes <= len(values) * BLOCK_BYTES
            else:
                cache.budget = len(values) * BLOCK_BYTES
            check(cache)

    always()


def test_a_growing_conversation_and_a_branch_share_their_beginning():
    cache = PrefixCache(PLENTY)
    first = list(range(3 * BLOCK_TOKENS))
    put(cache, first)
    assert use(cache, first + [7] * 100) == CacheUse(96, 0, "diverged")
    branch = first[: 2 * BLOCK_TOKENS] + [9] * BLOCK_TOKENS
    assert found(cache, branch) == 2 * BLOCK_TOKENS
    before = cache.nbytes
    put(cache, branch)
    assert cache.nbytes == before + BLOCK_BYTES
    assert found(cache, first) == found(cache, branch) == 96


def test_equal_tokens_after_another_prefix_are_not_taken():
    cache = PrefixCache(PLENTY)
    put(cache, block(1, 2))
    assert found(cache, block(3, 2)) == 0
    assert found(cache, block(2)) == 0


def test_the_least_recently_used_goes_first_and_never_before_its_continuation():
    cache = PrefixCache(3 * BLOCK_BYTES)
    put(cache, block(1, 1))
    put(cache, block(2))
    found(cache, block(1, 1))
    put(cache, block(3))
    assert (found(cache, block(1, 1)), found(cache, block(2))) == (64, 0)
    assert cache.evictions == 1


def test_what_is_being_stored_does_not_evict_itself():
    cache = PrefixCache(3 * BLOCK_BYTES)
    put(cache, block(1, 2, 3, 4, 5))
    assert found(cache, block(1, 2, 3, 4, 5)) == 96
    assert cache.evictions == 0


def test_a_request_says_why_it_missed():
    cache = PrefixCache(4 * BLOCK_BYTES)
    assert use(cache, [1] * 31) == CacheUse(0, 0, "short")
    assert use(cache, block(1, 2)) == CacheUse(0, 0, "new")
    put(cache, block(1, 2))
    assert use(cache, [*block(1, 2), *[3] * 31]) == CacheUse(64, 0, None)
    assert use(cache, block(1, 3)) == CacheUse(32, 0, "diverged")
    put(cache, block(4, 5, 6))
    assert use(cache, block(1, 2)) == CacheUse(32, 0, "evicted")
    put(cache, block(4, 5, 6, 7))
    assert use(cache, block(1, 2)) == CacheUse(0, 0, "evicted")
    assert use(PrefixCache(0), block(1, 2)) == CacheUse(0, 0, "off")


def test_memory_pressure_is_not_mistaken_for_no_cache():
    cache = PrefixCache(PLENTY)
    put(cache, block(1, 2))
    cache.budget = 0
    assert use(cache, block(1, 2)) == CacheUse(0, 0, "evicted")
    assert use(cache, block(3)) == CacheUse(0, 0, "new")


def test_without_a_budget_nothing_is_looked_at():
    cache = PrefixCache(0)
    cache.store(block(1), [object()])
    assert cache.nbytes == 0


def test_only_so_many_evicted_blocks_are_remembered(monkeypatch):
    monkeypatch.setattr(prefix_cache, "GHOSTS", 3)
    cache = PrefixCache(BLOCK_BYTES)
    for value in range(6):
        put(cache, block(value))
    assert [use(cache, block(value)).miss for value in range(6)] == ["new"] * 2 + ["evicted"] * 3 + [None]


def test_a_lookup_outlives_an_eviction():
    cache = PrefixCache(PLENTY)
    put(cache, block(1, 2))
    lookup, caches = cache.lookup(block(1, 2)), empty_caches()
    assert lookup.ready
    cache.budget = 0
    assert lookup.restore(caches).tokens == 64
    assert mx.array_equal(caches[0].keys, caches_for(block(1, 2))[0].keys[..., :64, :])
    assert cache.nbytes == 0


def test_what_is_suspect_is_forgotten(tmp_path):
    disk = DiskCache(tmp_path, PLENTY, "model")
    cache = PrefixCache(PLENTY, disk)
    put(cache, block(1, 2))
    cache.clear()
    assert cache.nbytes == 0
    assert use(cache, block(1, 2)) == CacheUse(0, 0, "evicted")
    put(cache, block(1, 2))
    cache.flush()
    cache.discard(block(1, 2))
    cache.close()
    assert list(tmp_path.rglob("*.kv")) == []
    assert found(cache, block(1, 2)) == 0


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_lookup_does_not_bring_back_what_is_suspect(tmp_path, where):
    cache = PrefixCache(PLENTY, DiskCache(tmp_path, PLENTY, "model"))
    put(cache, block(1, 2))
    if where == "disk":
        cache.shrink(0)
    lookup, caches = cache.lookup(block(1, 2)), empty_caches()
    assert lookup.wait(10)
    cache.clear()
    assert lookup.restore(caches) == CacheUse(0, 0, "evicted")
    assert all(layer.empty() for layer in caches)
    assert cache.nbytes == 0
    cache.close()


@pytest.mark.parametrize("spoil", ["dtype", "class", "shape"])
def test_blocks_that_do_not_fit_are_forgotten(tmp_path, spoil, caplog):
    cache, caches = PrefixCache(PLENTY, DiskCache(tmp_path, PLENTY, "model")), empty_caches()
    put(cache, block(1))
    longer = caches_for(block(1, 2))
    for layer in longer:
        if spoil == "dtype":
            layer.keys = layer.keys.astype(mx.float16)
        elif spoil == "shape":
            layer.keys = mx.concatenate([layer.keys, layer.keys], axis=3)
    cache.store(block(1, 2), longer)
    cache.flush()
    if spoil == "class":
        caches = [QuantizedKVCache() for _ in caches]
    assert cache.lookup(block(1, 2)).restore(caches) == CacheUse(0, 0, "damaged")
    assert all(layer.empty() for layer in caches)
    assert len(caplog.records) == 1
    assert use(cache, block(1, 2)).tokens == 0
    assert cache.nbytes == 0
    cache.close()
    assert list(tmp_path.rglob("*.kv")) == []


def test_what_is_suspect_is_not_written_though_it_waits_for_it(tmp_path):
    disk, gate = DiskCache(tmp_path, PLENTY, "model"), threading.Event()
    cache, write = PrefixCache(PLENTY, disk), disk._write
    disk._write = lambda *arguments: (gate.wait(10), write(*arguments))
    put(cache, block(1, 2, 3))
    cache.budget = 0
    cache.clear()
    gate.set()
    cache.close()
    # The one that was being written had been begun before.
    assert len(list(tmp_path.rglob("*.kv"))) <= 1


def test_a_failure_while_copying_leaves_the_cache_whole(monkeypatch):
    cache = PrefixCache(PLENTY)
    put(cache, block(1))
    monkeypatch.setattr(prefix_cache.mx, "eval", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put(cache, block(1, 2))
    monkeypatch.undo()
    check(cache)
    assert found(cache, block(1, 2)) == 32


def test_quantized_caches_are_shared_too():
    original = [KVCache().to_quantized(group_size=32, bits=8) for _ in range(2)]
    for layer in original:
        layer.update_and_fetch(mx.random.normal((1, 2, 64, 32)), mx.random.normal((1, 2, 64, 32)))
    cache = PrefixCache(PLENTY)
    cache.store(block(1, 2), original)
    fresh = [QuantizedKVCache(32, 8) for _ in original]
    assert cache.lookup(block(1, 2)).restore(fresh).tokens == 64
    assert mx.array_equal(fresh[1].values[0], original[1].values[0][:, :, :64])


# Layers whose state cannot be cut


def test_a_stateful_model_uses_what_is_exact_and_no_more():
    cache = PrefixCache(PLENTY, stateful=True)
    put(cache, block(1, 2), snapshot=True)
    put(cache, block(1, 2, 3))
    assert use(cache, block(1, 2)) == CacheUse(64, 0, None)
    assert use(cache, block(1, 2, 4)) == CacheUse(64, 0, "diverged")
    assert use(cache, block(1, 2, 3)) == CacheUse(64, 0, "no_snapshot")
    assert use(cache, block(1, 3)) == CacheUse(0, 0, "no_snapshot")
    assert use(cache, block(9)) == CacheUse(0, 0, "new")


def test_a_stateful_model_is_told_where_prompts_part():
    cache = PrefixCache(PLENTY, stateful=True)
    put(cache, block(1, 2, 3), snapshot=True)
    lookup = cache.lookup(block(1, 2, 4, 5))
    assert lookup.branch == 64
    assert lookup.restore(empty_caches(True)) == CacheUse(0, 0, "no_snapshot")
    put(cache, block(1, 2), snapshot=True)
    put(cache, block(1, 2, 4, 5), snapshot=True)
    again = cache.lookup(block(1, 2, 6))
    assert again.branch == 0
    assert again.restore(empty_caches(True)) == CacheUse(64, 0, "diverged")
    assert PrefixCache(PLENTY).lookup(block(1)).branch == 0


def test_an_evicted_snapshot_is_told_from_one_never_taken():
    cache = PrefixCache(PLENTY, stateful=True)
    put(cache, block(1, 2), snapshot=True)
    cache.shrink(cache.nbytes - 1)
    assert use(cache, block(1, 2)) == CacheUse(0, 0, "evicted")
    assert cache.lookup(block(1, 2)).branch == 64
    put(cache, block(1, 2), snapshot=True)
    assert use(cache, block(1, 2)) == CacheUse(64, 0, None)


def test_an_old_snapshot_goes_before_the_chain_it_is_in():
    cache = PrefixCache(PLENTY, stateful=True)
    put(cache, block(1), snapshot=True)
    put(cache, block(1, 2), snapshot=True)
    cache.shrink(cache.nbytes - 1)
    assert found(cache, block(1, 2)) == 64
    assert cache.lookup(block(1, 3)).branch == 32


def test_a_snapshot_in_the_middle_of_a_block_is_refused():
    cache = PrefixCache(PLENTY, stateful=True)
    with pytest.raises(ValueError, match="end of a block"):
        cache.store([1] * 33, caches_for([1] * 33, True), snapshot=True)
    with pytest.raises(ValueError, match="need snapshots"):
        PrefixCache(PLENTY).store(block(1), caches_for(block(1), True))


def test_caches_of_unknown_kinds_are_never_kept():
    class Other:
        pass

    cache = PrefixCache(PLENTY, stateful=True)
    cache.store(block(1), [*caches_for(block(1)), Other()], snapshot=True)
    assert cache.nbytes == 0


def test_a_real_model_answers_the_same(model, tmp_path):  # noqa: F811
    """Shared prefix, branch and what went on, from memory and from disk: the logits are those without a cache."""
    network = model
    system = [(3 * position) % 50 for position in range(64)]
    prompts = [system + [(position * k) % 50 for position in range(70)] for k in (3, 7)]
    caches = [PrefixCache(PLENTY, DiskCache(tmp_path, PLENTY, "model"), stateful=True)]
    used = []
    for prompt in [*prompts, *prompts, "restart", *prompts]:
        if prompt == "restart":
            caches[-1].flush()
            caches[-1].close()
            caches.append(PrefixCache(PLENTY, DiskCache(tmp_path, PLENTY, "model"), stateful=True))
        else:
            used.append(answer_with(network, caches[-1], prompt))
    caches[-1].close()
    assert [one.tokens for one in used] == [0, 0, 128, 128, 128, 128]
    assert [one.miss for one in used] == ["new", "no_snapshot", None, None, None, None]
    assert [one.from_disk for one in used[4:]] == [128, 128]
    third = caches[0].lookup(system + [49] * 64)
    assert third.restore(make_prompt_cache(network)).tokens == 64


def answer_with(network, cache: PrefixCache, prompt) -> CacheUse:
    """Run a prompt as the scheduler does, and compare with a run that takes the same slices without a cache."""
    lookup, caches, plain = cache.lookup(prompt[:-1]), make_prompt_cache(network), make_prompt_cache(network)
    found_ = lookup.restore(caches)
    end = (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    for start, stop in pairwise(sorted({0, 64, end, len(prompt) - 1})):
        run(network, plain, prompt[start:stop])
        if start >= found_.tokens:
            run(network, caches, prompt[start:stop])
            if stop in (lookup.branch, end):
                cache.store(prompt[:stop], caches, snapshot=True)
    for token in [*prompt[-1:], 5, 6, 7]:
        assert same_logits(run(network, caches, [token]), run(network, plain, [token]))
    cache.store([*prompt, 5, 6, 7], caches)
    check(cache)
    return found_


# The second tier


@pytest.fixture
def tiered(tmp_path):
    """Open prefix caches with one folder, as servers would one after the other."""
    caches = []

    def open_(budget=PLENTY, *, stateful=False, identity="model", disk_budget=PLENTY) -> PrefixCache:
        caches.append(PrefixCache(budget, DiskCache(tmp_path, disk_budget, identity), stateful=stateful))
        return caches[-1]

    yield open_
    for cache in caches:
        cache.close()


def restart(cache: PrefixCache) -> None:
    cache.flush()
    cache.close()


@pytest.mark.parametrize("stateful", [False, True])
def test_a_restart_loses_nothing(tiered, stateful):
    first = tiered(stateful=stateful)
    put(first, block(1, 2, 3), snapshot=stateful)
    restart(first)
    second = tiered(stateful=stateful)
    assert use(second, block(1, 2, 3)) == CacheUse(96, 96, None)
    assert use(second, block(1, 2, 3)) == CacheUse(96, 0, None), "now it is in memory"
    check(second)


def test_another_model_gets_nothing(tiered):
    first = tiered()
    put(first, block(1))
    restart(first)
    assert use(tiered(identity="other"), block(1)) == CacheUse(0, 0, "new")


def test_what_is_evicted_comes_back_from_disk(tiered):
    cache = tiered(2 * BLOCK_BYTES)
    put(cache, block(1, 2))
    put(cache, block(3, 4))
    assert use(cache, block(1, 2)) == CacheUse(64, 64, None)
    check(cache)
    put(cache, block(3))
    assert use(cache, block(1, 2)) == CacheUse(64, 32, None)


def test_more_than_fits_in_memory_is_used_from_disk(tiered):
    first = tiered()
    put(first, block(1, 2, 3, 4))
    restart(first)
    second = tiered(2 * BLOCK_BYTES)
    assert use(second, block(1, 2, 3, 4)) == CacheUse(128, 128, None)
    check(second)
    assert use(second, block(1, 2, 3, 4)) == CacheUse(128, 64, None)
    third = tiered(0)
    assert use(third, block(1, 2, 3, 4)) == CacheUse(128, 128, None)
    assert third.nbytes == 0


def test_only_what_was_of_use_is_written_while_there_is_room(tiered, tmp_path):
    cache = tiered()
    put(cache, block(1, 2))
    put(cache, block(3))
    found(cache, block(1, 9))
    put(cache, block(4))
    cache.close()
    assert [path.stem for path in tmp_path.rglob("*.kv")] == [chain(block(1))[0].digest.hex()]


def test_a_damaged_file_is_a_miss_that_says_so(tiered, tmp_path):
    first = tiered()
    put(first, block(1, 2, 3))
    restart(first)
    path = next(tmp_path.rglob(f"{chain(block(1, 2))[1].digest.hex()}.kv"))
    path.write_bytes(path.read_bytes()[:-1])
    second = tiered()
    assert use(second, block(1, 2, 3)) == CacheUse(32, 32, "damaged")
    assert second.disk.discarded == 1
    assert use(second, block(1, 2, 3)).tokens == 32


def test_a_file_that_has_gone_is_a_miss_like_an_eviction(tiered, tmp_path):
    first = tiered()
    put(first, block(1, 2))
    restart(first)
    second = tiered()
    next(tmp_path.rglob(f"{chain(block(1, 2))[1].digest.hex()}.kv")).unlink()
    assert use(second, block(1, 2)) == CacheUse(32, 32, "evicted")


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (("kv", 1), CacheUse(32, 32, "damaged")),
        (("state", 2), CacheUse(32, 32, "damaged")),
        (("kv", 0), CacheUse(0, 0, "damaged")),
    ],
)
def test_a_stateful_model_falls_back_to_an_earlier_snapshot(tiered, tmp_path, broken, expected):
    first = tiered(stateful=True)
    put(first, block(1), snapshot=True)
    put(first, block(1, 2, 3), snapshot=True)
    restart(first)
    kind, number = broken
    path = next(tmp_path.rglob(f"{chain(block(1, 2, 3))[number].digest.hex()}.{kind}"))
    path.write_bytes(b"")
    assert use(tiered(stateful=True), block(1, 2, 3)) == expected


def test_reading_happens_elsewhere_and_nobody_waits(tiered):
    first = tiered()
    put(first, block(1, 2))
    restart(first)
    second, gate, readers = tiered(), threading.Event(), []
    load = second.disk._load

    def slow(*arguments):
        readers.append(threading.current_thread())
        assert gate.wait(10)
        return load(*arguments)

    second.disk._load = slow
    lookup = second.lookup(block(1, 2))
    assert not lookup.ready
    assert not lookup.wait(0.01)
    gate.set()
    assert lookup.wait(10)
    assert lookup.restore(empty_caches()) == CacheUse(64, 64, None)
    assert threading.current_thread() not in readers


def test_a_cancelled_lookup_is_read_no_further(tiered):
    first = tiered()
    put(first, block(1, 2, 3))
    restart(first)
    second, gate = tiered(), threading.Event()
    load, loaded = second.disk._load, []

    def slow(key, reading):
        loaded.append(key)
        assert gate.wait(10)
        return load(key, reading)

    second.disk._load = slow
    lookup = second.lookup(block(1, 2, 3))
    lookup.cancel()
    gate.set()
    assert found(second, block(9)) == 0
    second.close()
    assert len(loaded) <= 1


def test_a_disk_that_is_closed_is_a_miss(tiered):
    cache = tiered(BLOCK_BYTES)
    put(cache, block(1))
    put(cache, block(2))
    cache.close()
    assert use(cache, block(1)).tokens == 0
    put(cache, block(3))


def test_nothing_of_mlx_happens_on_the_thread_of_the_disk(tiered, monkeypatch):
    """Blocks are turned into bytes, and bytes into blocks, where MLX lives."""
    threads = set()
    for name in ("record", "block"):
        owner = blocks.Block if name == "record" else blocks.Record
        plain = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, plain=plain: (threads.add(threading.current_thread()), plain(self))[1]
        )
    cache = tiered(2 * BLOCK_BYTES)
    put(cache, block(1, 2))
    put(cache, block(3, 4))
    found(cache, block(1, 2))
    assert threads == {threading.current_thread()}


@pytest.fixture
def hung(tiered):
    """A prefix cache with [1, 2] on disk, whose disk reads one block and then no more until the first event is set.

    The second one is set as soon as it hangs.
    """
    first = tiered()
    put(first, block(1, 2))
    restart(first)
    cache, gate, hangs = tiered(), threading.Event(), threading.Event()
    load = cache.disk._load

    def hang(key, reading):
        if key != ("kv", chain(block(1))[0].digest):
            hangs.set()
            assert gate.wait(10)
        return load(key, reading)

    cache.disk._load = hang
    yield cache, gate, hangs
    gate.set()


def test_nobody_waits_for_a_disk_that_does_not_answer(hung, caplog, monkeypatch):
    clock = clock_of(monkeypatch, disk_cache)
    monkeypatch.setattr(disk_cache, "PATIENCE", 60)
    cache, gate, hangs = hung
    lookup, other = cache.lookup(block(1, 2)), cache.lookup(block(1, 2))
    assert not other.ready
    assert not lookup.wait(0.05)
    assert hangs.wait(10)
    clock.ahead += 70
    assert lookup.wait(10)
    assert other.wait(10)
    assert lookup.restore(empty_caches()) == CacheUse(32, 32, "evicted"), "what had come is not lost"
    assert other.restore(empty_caches()) == CacheUse(32, 0, "evicted")
    assert len(caplog.records) == 1
    assert cache.lookup(block(1, 2)).ready, "and it is not asked again"
    assert use(cache, block(1, 2)).tokens == 32
    gate.set()
    cache.close()
    assert use(cache, block(1)).tokens == 32


def test_what_makes_room_does_not_pile_up_before_the_disk(tiered, monkeypatch):
    monkeypatch.setattr(prefix_cache, "SPILL_BYTES", 2 * BLOCK_BYTES)
    cache, gate = tiered(), threading.Event()
    write = cache.disk._write
    cache.disk._write = lambda *arguments: (gate.wait(10), write(*arguments))
    put(cache, block(1, 2, 3, 4, 5, 6))
    assert cache.queued_bytes == 0
    cache.shrink(5 * BLOCK_BYTES, write=False)
    assert cache.queued_bytes == 0
    cache.budget = 0
    assert (cache.nbytes, cache.queued_bytes) == (0, 2 * BLOCK_BYTES)
    assert PrefixCache(PLENTY).queued_bytes == 0
    gate.set()


@pytest.fixture
def alive(monkeypatch) -> Callable[[], int]:
    """Tells how many blocks that were read from disk are in memory, besides those that became MLX arrays."""
    payloads: list[weakref.ref] = []
    decode = disk_cache.decode

    def noted(*arguments):
        record = decode(*arguments)
        payloads.append(weakref.ref(record.payload[0]))
        return record

    monkeypatch.setattr(disk_cache, "decode", noted)
    return lambda: sum(payload() is not None for payload in payloads)


def test_what_is_read_from_disk_is_bounded_for_all_lookups_together(tiered, monkeypatch, alive):
    monkeypatch.setattr(prefix_cache, "READ_BYTES", 4 * BLOCK_BYTES)
    monkeypatch.setattr("jackfield.engine.lookup.PORTION_BYTES", 2 * BLOCK_BYTES)
    prompts = [block(*range(first, first + 9)) for first in (0, 10, 20, 30)]
    first = tiered()
    for prompt in prompts:
        put(first, prompt)
    restart(first)
    cache = tiered(5 * BLOCK_BYTES)
    lookups, most = [cache.lookup(prompt) for prompt in prompts], 0
    while [lookup for lookup in lookups if not lookup.ready]:
        most = max(most, alive())
        assert cache.in_flight <= 4 * BLOCK_BYTES
        assert cache.nbytes <= 5 * BLOCK_BYTES
    assert 0 < most <= 4
    assert cache.in_flight == 0
    for lookup, prompt in zip(lookups, prompts, strict=True):
        caches = empty_caches()
        assert lookup.restore(caches) == CacheUse(9 * 32, 9 * 32, None)
        assert mx.array_equal(caches[0].keys, caches_for(prompt)[0].keys[..., : len(prompt), :])


def test_who_reads_no_further_leaves_its_turn_to_others(tiered, monkeypatch):
    monkeypatch.setattr(prefix_cache, "READ_BYTES", BLOCK_BYTES)
    first = tiered()
    put(first, block(1, 2))
    put(first, block(3, 4))
    restart(first)
    cache = tiered()
    one, other = cache.lookup(block(1, 2)), cache.lookup(block(3, 4))
    assert not one.ready
    assert not other.wait(0.01), "it is not its turn"
    one.cancel()
    assert other.wait(10)
    assert other.restore(empty_caches()).tokens == 64
    assert cache.in_flight == 0


def test_a_lookup_whose_turn_does_not_come_gives_up(tiered, monkeypatch):
    monkeypatch.setattr(prefix_cache, "READ_BYTES", BLOCK_BYTES)
    monkeypatch.setattr("jackfield.engine.lookup.PATIENCE", 0.05)
    first = tiered()
    put(first, block(1))
    put(first, block(2))
    restart(first)
    cache = tiered()
    one, other = cache.lookup(block(1)), cache.lookup(block(2))
    assert not one.ready
    assert other.wait(10)
    assert other.restore(empty_caches()) == CacheUse(0, 0, "evicted")
    one.cancel()
    assert found(cache, block(2)) == 32


def test_blocks_that_go_before_they_are_taken_are_read_or_done_without(tiered):
    cache = tiered()
    put(cache, block(1, 2))
    cache.flush()
    lookup, alone = cache.lookup(block(1, 2)), PrefixCache(PLENTY)
    cache.budget = BLOCK_BYTES
    assert lookup.wait(10)
    assert lookup.restore(empty_caches()) == CacheUse(64, 32, None)
    put(alone, block(1, 2))
    lookup = alone.lookup(block(1, 2))
    alone.budget = BLOCK_BYTES
    assert lookup.restore(empty_caches()) == CacheUse(32, 0, "evicted")


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_long_prompt_needs_little_more_than_itself(tiered, where):
    tokens = [position % 50 for position in range(400 * BLOCK_TOKENS)]
    filled = [KVCache() for _ in range(LAYERS)]
    for layer in filled:
        array = mx.random.normal((1, 2, len(tokens), 16))
        layer.update_and_fetch(array, array)
    needed = sum(layer.keys.nbytes + layer.values.nbytes for layer in filled)
    cache = tiered()
    cache.store(tokens, filled)
    cache.flush()
    if where == "disk":
        cache.budget = 0
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    lookup, caches = cache.lookup(tokens), empty_caches()
    assert lookup.wait(30)
    assert lookup.nbytes == needed
    assert lookup.restore(caches).tokens == len(tokens)
    assert mx.get_peak_memory() - before < 1.2 * needed
    assert all(
        mx.array_equal(mine.keys, one.keys[:, :, : len(tokens)]) for mine, one in zip(caches, filled, strict=True)
    )
