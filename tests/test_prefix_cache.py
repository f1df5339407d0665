"""The prefix cache: finds what it was given, after the same prefix only, and keeps its budget."""

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache

from jackfield.engine.prefix_cache import BLOCK_TOKENS, PrefixCache, restore

LAYERS, HEADS, DIMENSION = 2, 1, 2
BLOCK_BYTES = LAYERS * HEADS * BLOCK_TOKENS * DIMENSION * 2 * 4


def caches_for(tokens: list[int]) -> list[KVCache]:
    """Caches in which every position shows the whole prefix before it, so that a wrong block would be seen."""
    sums, total = [], 0
    for position, token in enumerate(tokens):
        total += (position + 1) * token
        sums.append(float(total % 65536))
    caches = []
    for layer in range(LAYERS):
        cache = KVCache()
        array = mx.broadcast_to(mx.array(sums)[None, None, :, None] + layer, (1, HEADS, len(sums), DIMENSION))
        cache.update_and_fetch(array, -array)
        caches.append(cache)
    return caches


def found(cache: PrefixCache, tokens: list[int]) -> int:
    """How many tokens are found; what is found must be right."""
    blocks = cache.find(tokens)
    if not blocks:
        return 0
    caches = [KVCache() for _ in range(LAYERS)]
    restore(blocks, caches)
    count = caches[0].offset
    for mine, expected in zip(caches, caches_for(tokens[:count]), strict=True):
        assert mx.array_equal(mine.keys, expected.keys[..., :count, :])
        assert mx.array_equal(mine.values, expected.values[..., :count, :])
    return count


CONVERSATIONS = st.lists(
    st.lists(st.integers(0, 3), max_size=6).map(lambda parts: [p + 1 for p in parts for _ in range(BLOCK_TOKENS // 2)]),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(CONVERSATIONS, st.integers(0, 8))
def test_what_is_found_is_right_and_the_budget_is_kept(conversations, blocks):
    cache = PrefixCache(budget=blocks * BLOCK_BYTES)
    for tokens in conversations:
        found(cache, tokens)
        if tokens:
            cache.store(tokens, caches_for(tokens))
        assert cache.nbytes <= cache.budget
        assert cache.nbytes == sum(block.nbytes for block in cache._blocks.values())
        assert found(cache, tokens) == min(len(tokens) // BLOCK_TOKENS, blocks) * BLOCK_TOKENS


def test_a_growing_conversation_and_a_branch_share_their_beginning():
    cache = PrefixCache(budget=1 << 30)
    first = list(range(3 * BLOCK_TOKENS))
    cache.store(first, caches_for(first))
    assert found(cache, first + [7] * 100) == 3 * BLOCK_TOKENS
    branch = first[: 2 * BLOCK_TOKENS] + [9] * BLOCK_TOKENS
    assert found(cache, branch) == 2 * BLOCK_TOKENS
    before = cache.nbytes
    cache.store(branch, caches_for(branch))
    assert cache.nbytes == before + BLOCK_BYTES


def test_equal_tokens_after_another_prefix_are_not_taken():
    cache = PrefixCache(budget=1 << 30)
    tokens = [1] * BLOCK_TOKENS + [2] * BLOCK_TOKENS
    cache.store(tokens, caches_for(tokens))
    assert found(cache, [3] * BLOCK_TOKENS + [2] * BLOCK_TOKENS) == 0
    assert found(cache, [2] * BLOCK_TOKENS) == 0


def test_the_least_recently_used_goes_first_and_never_before_its_continuation():
    cache = PrefixCache(budget=3 * BLOCK_BYTES)
    old, new = [1] * (2 * BLOCK_TOKENS), [2] * BLOCK_TOKENS
    cache.store(old, caches_for(old))
    cache.store(new, caches_for(new))
    found(cache, old)
    other = [3] * BLOCK_TOKENS
    cache.store(other, caches_for(other))
    assert (found(cache, old), found(cache, new)) == (2 * BLOCK_TOKENS, 0)
    assert cache.evictions == 1
