"""The decode batch's KV cache: every row holds what it would hold alone, and memory is linear in what rows hold."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx import nn
from mlx_lm.models import gpt_oss, llama, qwen3_next
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache

from jackfield.engine.attention import BySlab, SlabAttention, attend_by_slab
from jackfield.engine.kv_cache import RowKVCache, Rows
from jackfield.engine.runner import CacheBatch, Runner
from jackfield.engine.slab import LENGTH_STEP, ONE_SLAB, Slab, SlabSizes

HEADS, DIMENSION, LAYERS = 2, 4, 2
SMALL = SlabSizes(smallest=4, largest=8, step=2)
"""Rows of up to 4 positions share a slab, those of up to 8 another; longer ones have their own."""
EMPTY = mx.zeros((0, HEADS, 0, DIMENSION))
POSITION_BYTES = LAYERS * 2 * HEADS * DIMENSION * 4


def filled(values: list[float]) -> KVCache:
    cache = KVCache()
    if values:
        array = mx.broadcast_to(mx.array(values)[None, None, :, None], (1, HEADS, len(values), DIMENSION))
        cache.update_and_fetch(array, -array)
    return cache


class Batch:
    """A batch of two layers next to plain lists that say what each row must hold; the second layer doubles it."""

    def __init__(self, sizes: SlabSizes = SMALL) -> None:
        self.sizes = sizes
        self.caches = CacheBatch([KVCache()] * LAYERS, [[EMPTY, EMPTY]] * LAYERS, sizes)
        self.rows = self.caches.rows
        self.expected: list[list[float]] = []
        self.longest: list[int] = []
        """Of each row, ever: one that is taken back stays where it is."""
        self.count = 0

    def join(self, length: int) -> None:
        values = [self._next() for _ in range(length)]
        self.caches.join([filled(values), filled([2 * value for value in values])], length)
        self.expected.append(values)
        self.longest.append(length + 1)

    def step(self, count: int = 1) -> None:
        if not self.expected:
            return
        new = [[self._next() for _ in range(count)] for _ in self.expected]
        self.caches.reserve(count)
        for row, values in enumerate(new):
            self.expected[row].extend(values)
        for layer in range(LAYERS):
            self._update(layer, mx.array(new), count)
        self.rows.advance(count)
        self.longest = [max(old, len(now)) for old, now in zip(self.longest, self.expected, strict=True)]

    def _update(self, layer: int, new: mx.array, count: int) -> None:
        cache = self.caches.layers[layer]
        incoming = self.rows.placed(new)[:, None, :, None] * mx.ones((HEADS, 1, DIMENSION)) * (layer + 1)
        mask = cache.make_mask(count)
        keys, values = cache.update_and_fetch(incoming, -incoming)
        seen = []
        for slab_keys, slab_values, slab_mask in zip(*map(parts, (keys, values, mask)), strict=True):
            assert mx.array_equal(slab_keys, -slab_values)
            for row, held in enumerate(slab_keys[:, 0, :, 0]):
                visible = len(held) if slab_mask is None else int(slab_mask[row, 0, -1].sum().item())
                seen.append((held[:visible] / (layer + 1)).tolist())
        order = self.rows.placed(mx.arange(len(self.expected))).tolist()
        assert seen == [self.expected[row] for row in order]

    def take_back(self, counts: list[int]) -> None:
        counts = [min(count, len(row)) for count, row in zip(counts, self.expected, strict=True)]
        self.rows.advance([-count for count in counts])
        self.expected = [row[: len(row) - count] for row, count in zip(self.expected, counts, strict=True)]

    def leave(self, row: int) -> None:
        keep = [i for i in range(len(self.expected)) if i != row]
        self.keep(keep)

    def keep(self, indices: list[int]) -> None:
        self.caches.keep(indices)
        self.expected = [self.expected[i] for i in indices]
        self.longest = [self.longest[i] for i in indices]

    def check(self) -> None:
        assert self.rows.lengths == [len(row) for row in self.expected]
        for row, values in enumerate(self.expected):
            for layer, cache in enumerate(self.caches.extract(row)):
                held = cache.keys[0, 1, :, 2] / (layer + 1) if values else mx.array([])
                assert (held.tolist(), cache.offset) == (values, len(values))
                assert not values or mx.array_equal(cache.keys, -cache.values)
        needed = sum(self.sizes.room(length) for length in self.longest) * POSITION_BYTES
        assert self.caches.nbytes <= 2 * needed

    def _next(self) -> float:
        self.count += 1
        return float(self.count)


def in_slabs(batch: Batch) -> list[list[int]]:
    """The lengths of the rows of each slab."""
    return sorted(sorted(row.length for row in slab.rows) for slab in batch.rows.slabs)


def parts(value: object) -> list:
    """What each slab has: an opaque object holds it when there are several."""
    return list(value.parts) if isinstance(value, BySlab) else [value]


LENGTHS = st.integers(0, 19)
ACTIONS = st.one_of(
    st.tuples(st.just("join"), LENGTHS),
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.just("leave"), LENGTHS),
    st.tuples(st.just("keep"), st.randoms(use_true_random=False)),
    st.tuples(st.just("take back"), st.randoms(use_true_random=False)),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ACTIONS, max_size=25), st.sampled_from([SMALL, SlabSizes(1, 4, 1)]))
def test_rows_keep_their_own_positions_while_others_come_and_go(actions, sizes):
    batch = Batch(sizes)
    for action, number in actions:
        if action == "join":
            batch.join(number)
        elif action == "step":
            batch.step(number)
        elif action == "keep":
            batch.keep(number.sample(range(len(batch.expected)), number.randint(0, len(batch.expected))))
        elif action == "take back":
            batch.take_back([number.randint(0, 3) for _ in batch.expected])
        elif batch.expected:
            batch.leave(number % len(batch.expected))
        batch.check()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(LENGTHS, min_size=1, max_size=9),
    st.lists(LENGTHS, max_size=4),
    st.lists(st.integers(0, 2), max_size=9),
    st.sampled_from([SMALL, SlabSizes(1, 4, 1), dataclasses.replace(ONE_SLAB, step=2)]),
)
def test_no_moment_of_a_step_takes_more_than_was_foretold(lengths, joining, leaving, sizes):
    batch = Batch(sizes)
    for length in lengths:
        batch.join(length)
    for row in leaving:
        if row < len(batch.expected):
            batch.leave(row)
    for some in (joining[:2], joining[2:]):
        foretold = batch.rows.nbytes_ahead(some)
        with most_bytes(batch) as most:
            for length in some:
                batch.join(length)
            batch.step()
        assert most[0] <= foretold
    batch.rows.trim()
    needed = sum(sizes.area([row.length + 1 for row in slab.rows]) for slab in batch.rows.slabs)
    assert batch.caches.nbytes <= needed * POSITION_BYTES
    batch.check()


@contextmanager
def most_bytes(batch: Batch) -> Iterator[list[int]]:
    """The most that all slabs hold at any moment between two changes."""
    most = [batch.caches.nbytes]
    changes = ("_resize", "add", "adopt", "keep")
    with pytest.MonkeyPatch.context() as patch:
        for name in changes:
            patch.setattr(Slab, name, noting(getattr(Slab, name), lambda: most.append(batch.caches.nbytes)))
        yield most
    most[0] = max(most)


def noting(method: Callable, note: Callable[[], None]) -> Callable:
    def noted(self: Slab, *arguments: object) -> None:
        method(self, *arguments)
        note()

    return noted


@settings(max_examples=20, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=6))
def test_one_slab_holds_rows_of_all_lengths(lengths):
    batch = Batch(dataclasses.replace(ONE_SLAB, step=2))
    for length in lengths:
        batch.join(length)
    batch.step()
    batch.step(2)
    assert len(batch.rows.slabs) == 1
    batch.keep(list(reversed(range(len(lengths)))))
    batch.step()
    assert [cache.offset for cache in (batch.caches.extract(i)[0] for i in range(len(lengths)))] == [
        length + 4 for length in reversed(lengths)
    ]


def test_rows_that_hold_nothing_yet_change_places():
    batch = Batch()
    for length in (2, 0, 0):
        batch.join(length)
    batch.leave(0)
    assert len(batch.expected) == 2
    batch.step()
    batch.check()


def test_rows_of_similar_length_share_a_slab_and_long_ones_do_not():
    batch = Batch()
    for length in (1, 30, 5, 3, 31):
        batch.join(length)
    assert in_slabs(batch) == [[1, 3], [5], [30], [31]]
    for _ in range(5):
        batch.step()
    batch.join(2)
    assert in_slabs(batch) == [[2], [6, 8], [10], [35], [36]]
    batch.check()


def test_a_long_row_beside_short_ones_takes_what_it_takes_alone():
    batch = Batch(SlabSizes())
    for length in (100, 30_000, 200, 250):
        batch.join(length)
    batch.step()
    assert batch.caches.nbytes == (3 * LENGTH_STEP + SlabSizes().room(30_001)) * POSITION_BYTES


def test_rows_longer_than_one_step_of_growth():
    batch = Batch(SlabSizes())
    batch.join(LENGTH_STEP - 1)
    batch.join(3)
    for _ in range(3):
        batch.step()
    batch.check()


def test_room_is_given_back_when_rows_leave():
    batch = Batch(SlabSizes())
    for length in (5, 3 * LENGTH_STEP, 4, 6, 7):
        batch.join(length)
    batch.step()
    full = batch.caches.nbytes
    batch.leave(1)
    assert batch.caches.nbytes <= full - 3 * LENGTH_STEP * POSITION_BYTES
    batch.keep([0])
    assert batch.caches.nbytes == LENGTH_STEP * POSITION_BYTES
    batch.check()
    batch.leave(0)
    assert batch.caches.nbytes == 0


def test_steps_and_leaving_rows_copy_no_slab():
    batch = Batch(SlabSizes())
    for length in (1000, 1001, 1002, 1003):
        batch.join(length)
    (slab,) = batch.rows.slabs
    one_row = slab.nbytes // 4 // LAYERS
    new = mx.ones((4, HEADS, 1, DIMENSION))
    mx.eval(slab.layers, new)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    batch.caches.reserve(1)
    fetched = [layer.update_and_fetch(new, new) for layer in batch.caches.layers]
    batch.rows.advance(1)
    mx.eval(slab.layers)
    del fetched
    batch.caches.keep([3, 1, 2])
    mx.eval(slab.layers)
    assert batch.rows.lengths == [1004, 1002, 1003]
    assert mx.get_peak_memory() - before < 1.5 * one_row


def test_a_single_row_needs_no_mask_and_unequal_rows_do():
    batch = Batch(SlabSizes())
    batch.join(5)
    assert batch.caches.layers[0].make_mask(1) is None
    batch.join(2)
    assert batch.caches.layers[0].make_mask(1)[:, 0, 0].tolist() == [[True] * 6, [True] * 3 + [False] * 3]


def test_several_tokens_at_once_see_only_what_comes_before_them():
    batch = Batch()
    batch.join(2)
    batch.join(1)
    mask = batch.caches.layers[0].make_mask(2)
    assert mask[:, 0].astype(mx.int32).tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 1, 0]]]


def test_sliding_windows_are_refused():
    with pytest.raises(ValueError, match="window"):
        RowKVCache(Rows(SMALL, []), 0).make_mask(1, window_size=4)


# ---------------------------------------------------------------------------------------- with networks

VOCABULARY = 50


def parameters(**changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    return {**sizes, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY, **changes}


def plain_model() -> nn.Module:
    mx.random.seed(5)
    return llama.Model(llama.ModelArgs(model_type="llama", **parameters()))


def hybrid_model() -> nn.Module:
    mx.random.seed(3)
    arguments = qwen3_next.ModelArgs(
        model_type="qwen3_next", linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_conv_kernel_dim=4, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
        shared_expert_intermediate_size=32, mlp_only_layers=[], moe_intermediate_size=32, rope_theta=10000.0,
        partial_rotary_factor=0.5, max_position_embeddings=512, head_dim=16, **parameters(num_hidden_layers=4),
    )  # fmt: skip
    return qwen3_next.Model(arguments)


def sliding_model() -> nn.Module:
    mx.random.seed(4)
    arguments = gpt_oss.ModelArgs(
        model_type="gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=8,
        rope_theta=10000, **parameters(),
    )  # fmt: skip
    return gpt_oss.Model(arguments)


class DirectAttention(nn.Module):
    """Calls MLX's attention itself, as a few of mlx-lm's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 3 * 16, bias=False)
        self.rope = nn.RoPE(8)

    def __call__(self, x, mask, cache):
        queries, keys, values = (
            part.reshape(*x.shape[:2], 2, 8).swapaxes(1, 2) for part in mx.split(self.project(x), 3, axis=-1)
        )
        offset = 0 if cache is None else cache.offset
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=8**-0.5, mask=mask)
        return out.swapaxes(1, 2).reshape(x.shape)


class DirectModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        mx.random.seed(2)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.layers = [DirectAttention(), DirectAttention()]

    def __call__(self, tokens, cache=None):
        x = self.embed(tokens)
        mask = create_attention_mask(x, cache and cache[0])
        for index, layer in enumerate(self.layers):
            x = x + layer(x, mask, cache and cache[index])
        return self.embed.as_linear(x)


class CarelessModel(DirectModel):
    """Attends to nothing but itself, whatever the cache has."""

    def __call__(self, tokens, cache=None):
        for layer in cache or ():
            layer.update_and_fetch(*[mx.zeros((*tokens.shape[:1], 2, tokens.shape[1], 8))] * 2)
        positions = 0 if cache is None else cache[0].offset
        return super().__call__(tokens) * (1.0 if isinstance(positions, int) else 2.0)


PROMPTS = [[7], [1, 2, 3, 4, 5, 6], [9] * 30, [3, 1], list(range(12)), [4, 4, 8], list(range(40))]


def batch_of(runner: Runner, prompts: list[list[int]]) -> CacheBatch:
    """The prompts but for their last tokens."""
    batch = runner.batch()
    for prompt in prompts:
        caches = runner.start()
        if prompt[:-1]:
            runner.prefill(caches, prompt[:-1])
        batch.join(caches, len(prompt) - 1)
    return batch


def alone(runner: Runner, prompt: list[int]) -> mx.array:
    return runner.model(mx.array([prompt]))[0, -1]


def assert_decodes(runner: Runner, prompts: list[list[int]], batch: CacheBatch) -> None:
    logits = runner.decode(mx.array([prompt[-1] for prompt in prompts]), batch)
    for row, prompt in enumerate(prompts):
        assert mx.allclose(logits[row], alone(runner, prompt), atol=1e-4).item(), f"row {row}"


@pytest.mark.parametrize("make", [plain_model, hybrid_model, sliding_model, DirectModel])
def test_rows_in_slabs_decode_as_they_do_alone(make):
    runner = Runner(make(), sizes=SMALL)
    batch, prompts = batch_of(runner, PROMPTS), [list(prompt) for prompt in PROMPTS]
    assert runner.ragged == (make is not DirectModel)
    assert (len(batch.rows.slabs) > 3) == runner.ragged
    for step in range(12):
        assert_decodes(runner, prompts, batch)
        for row, prompt in enumerate(prompts):
            prompt.append((7 * row + step) % VOCABULARY)
        if step % 4 == 2:
            keep = [len(prompts) - 1, *range(1, len(prompts) - 1)]
            batch.keep(keep)
            prompts = [prompts[row] for row in keep]


@pytest.mark.parametrize("make", [plain_model, DirectModel])
def test_several_tokens_at_once_are_single_steps_and_can_be_taken_back(make):
    runner = Runner(make(), sizes=SMALL)
    batch = batch_of(runner, PROMPTS)
    tokens = mx.array([[prompt[-1], 11, 12 + row] for row, prompt in enumerate(PROMPTS)])
    together = runner.decode(tokens, batch)
    for row, prompt in enumerate(PROMPTS):
        for position, extra in enumerate(([], [11], [11, 12 + row])):
            assert mx.allclose(together[row, position], alone(runner, prompt + extra), atol=1e-4).item()
    rejected = [row % 3 for row in range(len(PROMPTS))]
    batch.rows.advance([-count for count in rejected])
    kept = [
        [*p, 11, 12 + row][: len(p) + 2 - count] for row, (p, count) in enumerate(zip(PROMPTS, rejected, strict=True))
    ]
    assert_decodes(runner, [[*prompt, 20] for prompt in kept], batch)


@pytest.mark.parametrize("make", [plain_model, hybrid_model, sliding_model, DirectModel])
def test_a_row_that_is_taken_out_goes_on_alone(make):
    runner = Runner(make(), sizes=SMALL)
    batch = batch_of(runner, PROMPTS)
    runner.decode(mx.array([prompt[-1] for prompt in PROMPTS]), batch)
    for row, prompt in enumerate(PROMPTS):
        logits = runner.model(mx.array([[33]]), cache=batch.extract(row))[0, -1]
        assert mx.allclose(logits, alone(runner, [*prompt, 33]), atol=1e-4).item(), f"row {row}"


def test_a_network_whose_logits_differ_gets_one_slab():
    assert not Runner(CarelessModel(), sizes=SMALL).ragged


def test_the_bytes_of_a_row_are_known_before():
    runner = Runner(plain_model(), sizes=SMALL)
    assert runner.bytes_per_token == 2 * 2 * 2 * 8 * 4
    assert [runner.row_bytes(length) // runner.bytes_per_token for length in (1, 4, 5, 8, 9, 11)] == [
        4,
        4,
        8,
        8,
        10,
        12,
    ]
    for length in (3, 7, 20):
        assert batch_of(runner, [[1] * (length + 1)] * 3).nbytes <= 3 * runner.row_bytes(length)


def test_the_bytes_of_states_that_do_not_grow_are_counted():
    runner = Runner(hybrid_model(), sizes=SMALL)
    state = runner.row_bytes(4) - 4 * runner.bytes_per_token
    batch = batch_of(runner, [[1, 2, 3], [1, 2, 3, 4]])
    assert batch.nbytes - batch.rows.nbytes == 2 * state > 0


def test_a_window_counts_in_full():
    runner = Runner(sliding_model(), sizes=SMALL)
    position = 2 * 2 * 8 * 4
    assert (runner.bytes_per_token, runner.row_bytes(4)) == (position, (4 + 8) * position)
    batch = batch_of(runner, [[1] * 30, [1, 2]])
    runner.decode(mx.array([3, 3]), batch)
    assert batch.nbytes - batch.rows.nbytes <= 2 * 8 * position


def test_networks_of_one_module_are_wrapped_once(monkeypatch):
    monkeypatch.setattr(llama, "scaled_dot_product_attention", llama.scaled_dot_product_attention)
    for _ in range(2):
        attend_by_slab(plain_model())
    attention = llama.scaled_dot_product_attention
    assert isinstance(attention, SlabAttention)
    assert not isinstance(attention.__wrapped__, SlabAttention)
    assert sys.modules[llama.Attention.__module__] is llama
