"""Slices of a prompt in the decode batch's own steps: rows and prompt get what each gets by itself."""

import sys

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import base, gpt_oss, llama, mamba, qwen2, qwen3
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention

from jackfield.engine.attention import Fused
from jackfield.engine.batch import DecodeBatch
from jackfield.engine.kv_cache import PromptSlice
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.engine.runner import Cache, CacheBatch, Runner
from jackfield.engine.sequence import Sequence
from jackfield.engine.slab import ONE_SLAB, SlabSizes
from jackfield.models import cpu
from jackfield.models.device import Blas, Device

CPU = Device("cpu", "test", 0, Blas("test"))
VOCABULARY = 50
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY, "head_dim": 32,
}  # fmt: skip
SMALL = SlabSizes(smallest=4, largest=8, step=2)
"""Rows of up to 4 positions share a slab, those of up to 8 another; longer ones have their own."""
ROWS = [[7], [1, 2, 3, 4, 5, 6], [9] * 30, [3, 1], [4, 4, 8]]
SLICES = [1, 3, 16, 1, 5]


def llama_model() -> nn.Module:
    return llama.Model(llama.ModelArgs(model_type="llama", **SIZES))


def qwen2_model() -> nn.Module:
    sizes = {name: size for name, size in SIZES.items() if name != "head_dim"}
    return qwen2.Model(qwen2.ModelArgs(model_type="qwen2", **sizes | {"hidden_size": 128}))


def qwen3_model() -> nn.Module:
    return qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3", rope_theta=1e4, max_position_embeddings=512, tie_word_embeddings=True, **SIZES
        )
    )


def sliding_model() -> nn.Module:
    sizes = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "rope_theta": 10000}
    return gpt_oss.Model(gpt_oss.ModelArgs(model_type="gpt_oss", **sizes))


def recurrent_model() -> nn.Module:
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, state_size=8,
            num_hidden_layers=2, conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=4,
        )
    )  # fmt: skip


class FaultyAttention(nn.Module):
    """Calls mlx-lm's attention without the cache, or lets a slice's tokens see what comes after them."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.project = nn.Linear(16, 3 * 16, bias=False)
        # So that it matters what is attended to.
        self.project.weight *= 8
        self.fault = fault

    def __call__(self, x, mask, cache):
        queries, keys, values = (
            part.reshape(*x.shape[:2], 2, 8).swapaxes(1, 2) for part in mx.split(self.project(x), 3, axis=-1)
        )
        keys, values = cache.update_and_fetch(keys, values)
        if self.fault == "no mask" and isinstance(mask, Fused):
            mask = Fused(mask.batch, None)
        given = None if self.fault == "no cache" else cache
        out = scaled_dot_product_attention(queries, keys, values, cache=given, scale=8**-0.5, mask=mask)
        return out.swapaxes(1, 2).reshape(x.shape)


class FaultyModel(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        mx.random.seed(2)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.layers = [FaultyAttention(fault), FaultyAttention(fault)]

    def __call__(self, tokens, cache):
        x = self.embed(tokens)
        mask = create_attention_mask(x, cache[0])
        for layer, held in zip(self.layers, cache, strict=True):
            x = x + layer(x, mask, held)
        return self.embed.as_linear(x)


@pytest.fixture(params=["mlx-lm's layers", "faster layers"])
def prepare(request, monkeypatch):
    """Gives a network its layers for a CPU, or sees to it that it has mlx-lm's own."""

    def give(model: nn.Module) -> nn.Module:
        module = sys.modules[type(model).__module__]
        monkeypatch.setattr(module, "scaled_dot_product_attention", base.scaled_dot_product_attention)
        monkeypatch.setattr(module, "swiglu", swiglu)
        return cpu.prepare(model=model, config={}, device=CPU) if request.param == "faster layers" else model

    return give


def read(runner: Runner, tokens: list[int]) -> list[Cache]:
    caches = runner.start()
    if tokens:
        runner.prefill(caches, tokens)
    return caches


def batch_of(runner: Runner, prompts: list[list[int]]) -> CacheBatch:
    """The prompts but for their last tokens."""
    batch = runner.batch()
    for prompt in prompts:
        batch.join(read(runner, prompt[:-1]), len(prompt) - 1)
    return batch


def assert_close(found: mx.array, expected: mx.array, bits: int | None) -> None:
    assert found.shape == expected.shape
    if bits is None:
        assert mx.allclose(found, expected, atol=1e-4).item()
    else:
        # The last bit of an element may be rounded another way in another batch.
        assert (mx.linalg.norm(found - expected) <= 0.02 * mx.linalg.norm(expected)).item()


def held(cache: Cache) -> list[mx.array]:
    """A cache's keys and values, [1, KV heads, positions, dimension], as floating-point numbers."""
    found = cache.keys_and_values()
    return [mx.dequantize(*x, cache.group_size, cache.bits) for x in found] if hasattr(cache, "bits") else list(found)


def assert_same_caches(found: list[Cache], expected: list[Cache], bits: int | None) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (type(one), one.offset) == (type(other), other.offset)
        for array, right in zip(held(one), held(other), strict=True):
            assert_close(array, right, bits)


@pytest.mark.parametrize("sizes", [SMALL, ONE_SLAB], ids=["slabs", "one slab"])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("make", [llama_model, qwen2_model, qwen3_model])
def test_rows_and_a_prompt_get_what_they_get_alone(make, bits, sizes, prepare):
    mx.random.seed(1)
    runner = Runner(prepare(make()), kv_bits=bits, sizes=sizes)
    assert runner.fuses
    rows = [list(row) for row in ROWS]
    alone, fused = batch_of(runner, rows), batch_of(runner, rows)
    assert (len(fused.rows.slabs) > 2) == (sizes is SMALL)
    reading, expected = runner.start(), runner.start()
    prompt = [(3 * position) % VOCABULARY for position in range(sum(SLICES))]
    for step, count in enumerate(SLICES):
        start = expected[0].offset
        tokens = prompt[start : start + count]
        last = mx.array([row[-1] for row in rows])
        logits = runner.decode(last, fused, PromptSlice(tokens, reading))
        assert_close(logits, runner.decode(last, alone), bits)
        runner.prefill(expected, tokens)
        assert_same_caches(reading, expected, bits)
        for index, row in enumerate(rows):
            row.append((5 * index + step) % VOCABULARY)
        rows = change(runner, step, rows, alone, fused)
        assert fused.rows.lengths == alone.rows.lengths == [len(row) - 1 for row in rows]
    for index in range(len(rows)):
        assert_same_caches(fused.extract(index), alone.extract(index), bits)
    # The prompt's answer begins in the batch.
    fused.join(reading, len(prompt))
    alone.join(expected, len(prompt))
    last = mx.array([*(row[-1] for row in rows), 2])
    assert_close(runner.decode(last, fused), runner.decode(last, alone), bits)


def change(runner: Runner, step: int, rows: list[list[int]], alone: CacheBatch, fused: CacheBatch) -> list[list[int]]:
    """Rows leave and change places after the second step, and others join after the third."""
    if step == 1:
        keep = [4, 1, 2]
        rows = [rows[row] for row in keep]
        alone.keep(keep)
        fused.keep(keep)
    if step == 2:
        rows = [*rows, [5, 6], [8] * 12]
        for row in rows[-2:]:
            alone.join(read(runner, row[:-1]), len(row) - 1)
            fused.join(read(runner, row[:-1]), len(row) - 1)
    return rows


def test_the_order_of_rows_is_that_of_the_batch():
    runner = Runner(llama_model(), sizes=SMALL)
    batch = batch_of(runner, [[9] * 30, [7], [1] * 6, [3, 1]])
    assert [batch.rows.place(row) for row in range(4)] != [0, 1, 2, 3]
    logits = runner.decode(mx.array([9, 7, 1, 1]), batch, PromptSlice([4, 5], runner.start()))
    for row, tokens in enumerate([[9] * 30, [7], [1] * 6, [3, 1]]):
        assert mx.allclose(logits[row], runner.model(mx.array([tokens]))[0, -1], atol=1e-4).item()


@pytest.mark.parametrize("make", [sliding_model, recurrent_model])
def test_caches_of_other_kinds_are_not_fused(make):
    assert not Runner(make()).fuses


@pytest.mark.parametrize(("fault", "fuses"), [("none", True), ("no cache", False), ("no mask", False)])
def test_a_network_that_reads_prompts_otherwise_is_found_out(fault, fuses):
    runner = Runner(FaultyModel(fault))
    assert (runner.ragged, runner.fuses) == (True, fuses)


def decode_batch(runner: Runner, max_tokens: int) -> DecodeBatch:
    batch = DecodeBatch(runner)
    for index, row in enumerate(ROWS):
        sampling = SamplingParameters(temperature=0)
        sequence = Sequence(GenerationRequest(str(index), tuple(row), max_tokens, sampling))
        sequence.caches = read(runner, row[:-1])
        batch.join(sequence)
    return batch


def answers(batch: DecodeBatch, prompts: list[PromptSlice | None]) -> list[list[int]]:
    sequences = list(batch.sequences)
    for prompt in prompts:
        batch.launch(prompt)
        batch.remove([step.sequence for step in batch.read() if step.finished])
        batch.sample()
    return [sequence.answer for sequence in sequences]


def test_a_prompt_is_read_beside_the_batch_and_in_its_last_step_after_which_nothing_is_computed():
    mx.random.seed(6)
    runner = Runner(llama_model(), sizes=SMALL)
    reading, expected = runner.start(), runner.start()
    prompts = [PromptSlice([step, 2, 3], reading) for step in range(4)]
    found = answers(decode_batch(runner, max_tokens=3), prompts)
    assert found == answers(decode_batch(runner, max_tokens=3), [None] * 4)
    assert [len(answer) for answer in found] == [3] * len(ROWS)
    for prompt in prompts:
        runner.prefill(expected, prompt.tokens)
    assert_same_caches(reading, expected, None)
