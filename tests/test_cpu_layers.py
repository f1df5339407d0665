"""The CPU's faster layers compute what mlx-lm's own do."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import base, qwen2
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from jackfield.engine.attention import attend_by_slab
from jackfield.models import cpu
from jackfield.models.device import Blas, Device

CPU = Device("cpu", "test", 0, Blas("test"))


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32) * scale)


@pytest.mark.parametrize("rows", [1, 40])
def test_swiglu_is_swiglu(rows):
    gate, x = random(rows, 512, scale=4), random(rows, 512, seed=1)
    assert mx.allclose(cpu.swiglu(gate, x), nn.silu(gate) * x, rtol=1e-5, atol=1e-6).item()


def test_swiglu_far_out_neither_overflows_nor_hides_what_is_not_a_number():
    size = cpu.WORTHWHILE
    assert mx.array_equal(cpu.swiglu(mx.full((size,), 1e4), mx.ones(size)), mx.full((size,), 1e4)).item()
    assert mx.max(mx.abs(cpu.swiglu(mx.full((size,), -1e4), mx.ones(size)))).item() < 1e-20
    assert mx.all(mx.isnan(cpu.swiglu(mx.full((size,), mx.nan), mx.ones(size)))).item()


def test_attention_leaves_no_subnormal_weights_and_passes_on_what_is_not_a_number():
    positions = cpu.WORTHWHILE
    scores = mx.zeros((1, 1, 1, positions)) - 100.0
    scores[..., 0] = 0.0
    weights = np.array(cpu._softmax(scores, None))
    assert weights[..., 0] == pytest.approx(1.0)
    assert 1e-27 < weights[..., 1:].min() < 1e-25
    assert np.isnan(np.array(cpu._softmax(mx.full((1, 1, 1, positions), mx.nan), None))).all()


@pytest.mark.parametrize("mask", [None, "causal", "bool", "additive"])
@pytest.mark.parametrize(
    ("rows", "count", "positions"),
    [(1, 1, 40), (3, 1, 40), (1, 33, 33), (2, 17, 90), (1, 60, 70), (1, 3, 3000), (2, 1, 1400)],
)
def test_attention_is_attention(mask, rows, count, positions):
    queries, keys, values = (
        random(rows, heads, n, 16, seed=i) for i, (heads, n) in enumerate([(6, count), (2, positions), (2, positions)])
    )
    visible = mx.arange(positions - count, positions)[:, None] >= mx.arange(positions)
    given = {"bool": visible, "additive": mx.where(visible, 0.0, -1e9)}.get(mask, mask)
    expected = base.scaled_dot_product_attention(queries, keys, values, None, 0.25, given)
    assert mx.allclose(cpu.attention(queries, keys, values, None, 0.25, given), expected, atol=1e-5).item()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 5])
def test_attention_reads_quantized_keys_and_values(bits, count):
    cache = QuantizedKVCache(32, bits)
    queries, keys, values = random(2, 6, count, 32), random(2, 3, 40, 32, seed=1), random(2, 3, 40, 32, seed=2)
    mask = mx.arange(40)[None] <= mx.arange(30, 30 + count)[:, None]
    held = mx.quantize(keys, 32, bits), mx.quantize(values, 32, bits)
    expected = base.scaled_dot_product_attention(queries + 0, *held, cache, 0.25, mask)
    assert mx.allclose(cpu.attention(queries + 0, *held, cache, 0.25, mask), expected, atol=1e-5).item()


@pytest.mark.parametrize("offset", [0, 7, mx.array([3, 0, 11])])
def test_shared_rotations_rotate(offset):
    x = random(3, 2, 5, 8)
    rope = nn.RoPE(8, traditional=False, base=10000.0)
    shared = cpu.SharedRoPE(cpu.Rotations(8, 10000.0, 1.0))
    for _ in range(2):
        assert mx.allclose(shared(x, offset=offset), rope(x, offset=offset), atol=1e-5).item()


def test_a_table_is_not_used_for_other_positions():
    x, rotations = random(2, 1, 1, 8), cpu.Rotations(8, 10000.0, 1.0)
    shared, rope = cpu.SharedRoPE(rotations), nn.RoPE(8, traditional=False, base=10000.0)
    for offset in (0, 1, mx.array([1, 2]), mx.array([5, 6]), 1, 0):
        assert mx.allclose(shared(x, offset=offset), rope(x, offset=offset), atol=1e-5).item()


def qwen() -> qwen2.Model:
    mx.random.seed(1)
    return qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=64,
            num_hidden_layers=3,
            intermediate_size=256,
            num_attention_heads=4,
            rms_norm_eps=1e-6,
            vocab_size=100,
            num_key_value_heads=2,
        )
    )


def test_a_prepared_model_gives_the_same_logits(monkeypatch):
    for name in ("swiglu", "scaled_dot_product_attention"):
        monkeypatch.setattr(qwen2, name, getattr(qwen2, name))
    model, tokens = qwen(), mx.array([list(range(60))])
    expected = model(tokens)
    mx.eval(expected)
    prepared = cpu.prepare(model=model, config={}, device=CPU)
    assert isinstance(prepared.layers[0].self_attn.rope, cpu.SharedRoPE)
    assert qwen2.swiglu is cpu.swiglu
    assert mx.allclose(prepared(tokens), expected, atol=1e-4).item()
    caches = make_prompt_cache(prepared)
    prepared(tokens[:, :40], cache=caches)
    assert mx.allclose(prepared(tokens[:, 40:], cache=caches), expected[:, 40:], atol=1e-4).item()


def test_what_wraps_a_faster_layer_stays(monkeypatch):
    monkeypatch.setattr(qwen2, "scaled_dot_product_attention", base.scaled_dot_product_attention)
    monkeypatch.setattr(qwen2, "swiglu", qwen2.swiglu)
    attend_by_slab(cpu.prepare(model=qwen(), config={}, device=CPU))
    wrapped = qwen2.scaled_dot_product_attention
    assert wrapped.__wrapped__ is cpu.attention
    cpu.prepare(model=qwen(), config={}, device=CPU)
    assert qwen2.scaled_dot_product_attention is wrapped


def test_other_devices_are_left_alone():
    model = qwen()
    assert cpu.prepare(model=model, config={}, device=Device("metal", "test", 0, Blas("test"))) is model
    assert type(model.layers[0].self_attn.rope) is nn.RoPE
