"""Pieces of caches: exact copies that nobody can change, which put together give what the model had."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.models import falcon_h1, gemma3_text, qwen3_next
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from jackfield.engine import blocks
from jackfield.engine.blocks import (
    BLOCK_TOKENS,
    Block,
    Joint,
    Record,
    chain,
    cut,
    reusable,
    snapshot,
    stateful,
)
from logits import same_logits

TOKENS = [(7 * position) % 50 for position in range(200)]
HYBRID = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16, "vocab_size": 50}


def tiny_qwen3_next():
    linear = {"num_value_heads": 4, "num_key_heads": 2, "key_head_dim": 32, "value_head_dim": 32, "conv_kernel_dim": 4}
    experts = {"num_experts": 0, "num_experts_per_tok": 0, "decoder_sparse_step": 1, "mlp_only_layers": []}
    experts |= {"shared_expert_intermediate_size": 32, "moe_intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "partial_rotary_factor": 0.5}
    rest = {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 512}
    named = {f"linear_{name}": value for name, value in linear.items()} | experts | heads | rest
    return qwen3_next.Model(qwen3_next.ModelArgs("qwen3_next", **HYBRID, **named))


def tiny_gemma():
    """A sliding window of 48 positions in two of three layers."""
    window = {"sliding_window": 48, "sliding_window_pattern": 3, "num_attention_heads": 2, "query_pre_attn_scalar": 16}
    return gemma3_text.Model(gemma3_text.ModelArgs("gemma3_text", **HYBRID, **window))


def tiny_falcon():
    """Each layer has both a recurrent state and keys and values."""
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8, "num_attention_heads": 2}
    return falcon_h1.Model(falcon_h1.ModelArgs(**HYBRID, **mamba, num_key_value_heads=1))


@pytest.fixture(params=[tiny_qwen3_next, tiny_gemma, tiny_falcon])
def model(request):
    mx.random.seed(0)
    network = request.param()
    network.update(tree_map(lambda weight: mx.random.normal(weight.shape) * 0.2, network.parameters()))
    mx.eval(network.parameters())
    return network


def run(model, caches, tokens):
    return model(mx.array([tokens]), cache=caches)


def filled(length: int, *shapes: tuple[int, int, int], dtype=mx.float32) -> list[KVCache]:
    """Caches with random contents; shapes are KV heads, key dimension, value dimension."""
    caches = []
    for heads, key, value in shapes:
        cache = KVCache()
        arrays = [mx.random.normal((1, heads, length, size)).astype(dtype) for size in (key, value)]
        cache.update_and_fetch(*arrays)
        caches.append(cache)
    return caches


def pieces(caches, count):
    return [cut(caches, n * BLOCK_TOKENS, (n + 1) * BLOCK_TOKENS) for n in range(count)]


def joined(pieces, count: int, at_once: int = 1) -> list:
    joint = Joint(count)
    for start in range(0, len(pieces), at_once):
        joint.put(pieces[start : start + at_once])
    return joint.layers(count)


def restore(pieces, state, caches):
    blocks.restore(joined(pieces, len(pieces)), state, caches)


def same(held: mx.array, expected: mx.array) -> bool:
    return held.dtype == expected.dtype and bool(mx.array_equal(held, expected))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("shapes", [[(3, 8, 8)] * 4, [(1, 8, 4)], [(2, 8, 8), (1, 16, 16), (2, 8, 8), (1, 6, 0)]])
def test_blocks_put_together_are_what_they_were_cut_from(shapes, dtype):
    caches = filled(100, *shapes, dtype=dtype)
    fresh = [KVCache() for _ in shapes]
    restore(pieces(caches, 3), None, fresh)
    for mine, original in zip(fresh, caches, strict=True):
        assert mine.offset == 96
        assert same(mine.keys, original.keys[:, :, :96])
        assert same(mine.values, original.values[:, :, :96])


def test_quantized_caches_are_cut_without_loss():
    caches = [cache.to_quantized(group_size=32, bits=4) for cache in filled(70, (2, 64, 64), (2, 64, 64))]
    fresh = [QuantizedKVCache(group_size=32, bits=4) for _ in caches]
    restore(pieces(caches, 2), None, fresh)
    for mine, original in zip(fresh, caches, strict=True):
        assert mine.offset == 64
        for held, expected in zip((*mine.keys, *mine.values), (*original.keys, *original.values), strict=True):
            assert same(held, expected[:, :, :64])
    more = mx.random.normal((1, 2, 1, 64))
    keys, _ = fresh[0].update_and_fetch(more, more)
    assert keys[0].shape[2] == 65


def test_a_layer_that_never_fills_its_cache_stays_empty():
    caches = [*filled(40, (2, 8, 8)), KVCache()]
    fresh = [KVCache(), KVCache()]
    restore(pieces(caches, 1), None, fresh)
    assert fresh[0].offset == BLOCK_TOKENS
    assert fresh[1].empty()


def test_more_than_the_caches_hold_is_not_cut():
    with pytest.raises(ValueError, match="40 positions, not 64"):
        cut(filled(40, (1, 4, 4)), 32, 64)


def test_caches_of_another_kind_are_not_filled():
    held = pieces(filled(32, (1, 64, 64)), 1)
    with pytest.raises(ValueError, match="QuantizedKVCache"):
        restore(held, None, [QuantizedKVCache()])
    state = snapshot([filled_rotating(40)])
    with pytest.raises(ValueError, match="a RotatingKVCache was kept"):
        restore(held, state, [*filled(0, (1, 64, 64)), ArraysCache(2)])


def test_caches_that_cannot_be_filled_stay_empty():
    fresh = [KVCache(), RotatingKVCache(32), ArraysCache(1)]
    state = snapshot([filled_rotating(40), ChunkedKVCache(8)])
    with pytest.raises(ValueError, match="a ChunkedKVCache was kept"):
        restore(pieces(filled(32, (1, 4, 4)), 1), state, fresh)
    assert all(cache.empty() for cache in fresh)
    assert fresh[0].offset == fresh[1].offset == 0


@pytest.mark.parametrize("other", [((1, 4, 8), mx.float32), ((2, 4, 4), mx.float32), ((1, 4, 4), mx.float16)])
def test_blocks_that_are_not_alike_are_not_joined(other):
    shape, dtype = other
    mixed = [*pieces(filled(64, (1, 4, 4)), 2), *pieces(filled(32, shape, dtype=dtype), 1)]
    with pytest.raises(ValueError, match="different kinds"):
        joined(mixed, 3)
    with pytest.raises(ValueError, match="different kinds"):
        joined(mixed, 3, at_once=3)
    with pytest.raises(ValueError, match="2 blocks of 3"):
        joined(mixed[:2], 3)
    with pytest.raises(ValueError, match="16 positions"):
        joined([cut(filled(16, shape), 0, 16)], 1)


def test_fewer_blocks_than_were_to_come_can_be_had():
    shape = (1, 4, 4)
    parts = pieces(filled(96, shape), 3)
    whole, some = joined(parts, 3), Joint(3)
    some.put(parts)
    for mine, other in zip(some.layers(2), whole, strict=True):
        assert all(mx.array_equal(a, b[:, :, :64]) for a, b in zip(mine, other, strict=True))
    assert some.nbytes == 0, "they belong to the caller"


def filled_rotating(length: int, step: int = 1, window: int = 32, keep: int = 0) -> RotatingKVCache:
    cache = RotatingKVCache(window, keep)
    for start in range(0, length, step):
        array = mx.arange(start, start + step, dtype=mx.float32).reshape(1, 1, step, 1)
        cache.update_and_fetch(array, -array)
    return cache


@pytest.mark.parametrize("keep", [0, 4])
@pytest.mark.parametrize(("length", "step"), [(20, 1), (20, 20), (32, 1), (45, 1), (45, 9), (90, 45), (64, 64)])
@pytest.mark.parametrize("more", [1, 5])
def test_a_rotating_cache_goes_on_as_if_it_had_never_been_copied(length, step, more, keep):
    original = filled_rotating(length, step, keep=keep)
    copy = RotatingKVCache(32, keep)
    restore(pieces(filled(64, (1, 1, 1)), 1), snapshot([original]), [KVCache(), copy])
    assert copy.keys.shape[2] <= 32, "no more than the window is kept"
    for _ in range(40):
        array = mx.full((1, 1, more, 1), float(original.offset))
        # How many positions of the past are returned may differ with the steps; the mask is for those that are.
        keys, _ = original.update_and_fetch(array, array)
        mine, _ = copy.update_and_fetch(array, array)
        assert mine.tolist() == keys.tolist()
        assert (copy.offset, copy._idx) == (original.offset, original._idx)
        assert str(copy.make_mask(more)) == str(original.make_mask(more))


def test_what_a_cache_does_later_changes_no_piece():
    rotating, arrays = filled_rotating(40), ArraysCache(1)
    arrays[0] = mx.zeros((1, 4))
    kv = filled(40, (1, 1, 1))
    piece, state = cut(kv, 0, 32), snapshot([rotating, arrays])
    before = [array.tolist() for array in (*piece.arrays, *state.arrays)]
    restored = [KVCache(), RotatingKVCache(32), ArraysCache(1)]
    restore([piece], state, restored)
    for caches in (restored, [*kv, rotating, arrays]):
        for _ in range(3):
            caches[0].update_and_fetch(mx.ones((1, 1, 1, 1)), mx.ones((1, 1, 1, 1)))
            caches[0].keys[...] = 5
            caches[1].update_and_fetch(mx.ones((1, 1, 1, 1)), mx.ones((1, 1, 1, 1)))
            caches[2][0][0, 1] = 9
        mx.eval([cache.state for cache in caches])
    assert [array.tolist() for array in (*piece.arrays, *state.arrays)] == before


@pytest.mark.parametrize("take", [lambda caches: cut(caches, 0, 32), lambda caches: snapshot(view_of(caches))])
def test_a_piece_does_not_keep_the_memory_it_was_cut_from(take):
    caches = filled(32000, (1, 64, 32))
    mx.eval([cache.state for cache in caches])
    before = mx.get_active_memory()
    piece = take(caches)
    mx.eval(piece.arrays)
    del caches
    # MLX may give an array up to 16 KiB more than it needs.
    assert mx.get_active_memory() <= before - 32000 * 96 * 4 + piece.nbytes + 2 * 16384


def view_of(caches):
    cache = ArraysCache(1)
    cache[0] = caches[0].keys[:, :, :32]
    return [cache]


def test_layers_are_told_apart():
    class Unknown(KVCache):
        pass

    assert not stateful([KVCache(), QuantizedKVCache(), CacheList(KVCache(), KVCache())])
    assert stateful([KVCache(), RotatingKVCache(8)])
    assert stateful([CacheList(ArraysCache(2), KVCache())])
    assert reusable([KVCache(), RotatingKVCache(8), CacheList(ArraysCache(2), KVCache()), ChunkedKVCache(8)])
    assert not reusable([KVCache(), Unknown()])


def test_a_chunked_cache_goes_on_as_if_it_had_never_been_copied():
    original, copy = ChunkedKVCache(16), ChunkedKVCache(16)
    array = mx.random.normal((1, 1, 40, 2))
    original.update_and_fetch(array, array)
    original.maybe_trim_front()
    restore(pieces(filled(32, (1, 1, 1)), 1), snapshot([original]), [KVCache(), copy])
    for _ in range(20):
        for cache in (original, copy):
            cache.maybe_trim_front()
        token = mx.random.normal((1, 1, 1, 2))
        expected, mine = original.update_and_fetch(token, token)[0], copy.update_and_fetch(token, token)[0]
        assert same(mine, expected)
        assert copy.offset == original.offset


@pytest.mark.parametrize("slices", [[96], [40, 56], [64, 31, 1], [1] * 64])
def test_a_model_answers_the_same_from_a_snapshot(model, slices):
    """Logits after the restored prefix are those after the prefix itself."""
    caches, position = make_prompt_cache(model), 0
    for size in slices:
        run(model, caches, TOKENS[position : position + size])
        position += size
    state = snapshot(caches)
    copies = make_prompt_cache(model)
    restore(pieces(caches, position // BLOCK_TOKENS), state, copies)
    for tokens in (TOKENS[position : position + 20], *([token] for token in TOKENS[position + 20 : position + 50])):
        assert same_logits(run(model, copies, tokens), run(model, caches, tokens))


def test_a_model_answers_the_same_from_a_record(model):
    caches = make_prompt_cache(model)
    run(model, caches, TOKENS[:96])
    links = chain(TOKENS[:96])
    kept = [Block("kv", link, piece) for link, piece in zip(links, pieces(caches, 3), strict=True)]
    state = Block("state", links[-1], snapshot(caches)).record().block()
    copies = make_prompt_cache(model)
    restore([block.record().block().piece for block in kept], state.piece, copies)
    assert same_logits(run(model, copies, TOKENS[96:]), run(model, caches, TOKENS[96:]))


@pytest.mark.parametrize("dtype", [mx.bool_, mx.uint32, mx.bfloat16, mx.float16, mx.float32, mx.complex64])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (1, 2, 0), (3, 1, 4, 2)])
def test_a_record_is_the_block_again(dtype, shape):
    cache = ArraysCache(2)
    cache[0] = (mx.random.normal(shape) * 9).astype(dtype)
    block = Block("state", chain(range(32))[0], snapshot([cache]))
    again = block.record().block()
    assert same(again.piece.arrays[0], cache[0])
    assert again.piece.arrays[0].shape == shape
    assert (again.key, again.link, again.piece.layout, again.nbytes) == (
        block.key,
        block.link,
        block.piece.layout,
        block.nbytes,
    )


def test_a_record_that_contradicts_itself_is_refused():
    link, other = chain(range(64))
    Record("kv", link, "[]", (("float32", (2,)),), (bytes(8),))
    with pytest.raises(ValueError, match="tokens"):
        Record("kv", link._replace(tokens=other.tokens), "[]", (), ())
    with pytest.raises(ValueError, match="sizes"):
        Record("kv", link, "[]", (("float32", (2,)),), (bytes(7),))
    with pytest.raises(ValueError, match="float8"):
        Record("kv", link, "[]", (("float8", (2,)),), (bytes(2),))


def test_a_chain_has_whole_blocks_only_and_knows_what_came_before():
    assert chain(range(31)) == []
    first, second = chain(range(95))
    assert (first.parent, second.parent) == (b"", first.digest)
    assert chain([*range(32), *range(32, 64)])[1] == second
    assert chain([1, *range(1, 32), *range(32, 64)])[1].digest != second.digest
