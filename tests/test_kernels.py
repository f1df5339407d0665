"""What mlx-lm has as Metal kernels, in plain MLX: held to the formulas, written out in NumPy."""

import importlib
import inspect
import sys
import types

import mlx.core as mx
import mlx_lm.kernels
import numpy as np
import pytest
from mlx import nn

from jackfield.models import kernels

ROWS, COUNT, HEADS, KV_HEADS, WIDTH = 2, 3, 4, 2, 8
EPSILON = 1e-5
random = np.random.default_rng(0)


def values(*shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def rms(x: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def rotated(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """One head's vector, neighbours together, turned by its position (arXiv:2104.09864)."""
    out = np.empty(x.shape)
    for pair in range(len(x) // 2):
        angle = position * base ** (-2 * pair / len(x))
        first, second = x[2 * pair], x[2 * pair + 1]
        out[2 * pair] = first * np.cos(angle) - second * np.sin(angle)
        out[2 * pair + 1] = first * np.sin(angle) + second * np.cos(angle)
    return out


def close(actual: mx.array, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(actual), expected, rtol=2e-5, atol=2e-5)


def test_expert_routing() -> None:
    logits, bias = values(ROWS, COUNT, 6), values(6)
    options = {"top_k": 3, "multiplier": 0.7, "score_eps": 1e-3, "route_scale": 2.5}
    experts, weights = kernels.expert_routing(mx.array(logits), mx.array(bias), **options)
    scores = sigmoid(logits * 0.7)
    best = np.argsort(-(scores + bias), axis=-1)[..., :3]
    chosen = np.take_along_axis(scores, best, -1)
    assert experts.dtype == mx.uint32
    assert np.array_equal(np.array(experts), best)
    close(weights, chosen / (chosen.sum(-1, keepdims=True) + 1e-3) * 2.5)


def test_of_experts_with_equal_scores_the_first_is_taken() -> None:
    experts, _ = kernels.expert_routing(
        mx.zeros((1, 6)), mx.zeros(6), top_k=2, multiplier=1.0, score_eps=0.0, route_scale=1.0
    )
    assert experts.tolist() == [[0, 1]]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_norm_add_norm(scaled: bool, last: bool) -> None:
    branch, stream, alpha, beta, scale = values(COUNT, WIDTH), values(COUNT, WIDTH), *(values(WIDTH) for _ in range(3))
    norm = nn.RMSNorm(WIDTH, EPSILON)
    norm.weight = mx.array(values(WIDTH))
    total, normed = kernels.norm_add_norm(
        mx.array(branch),
        mx.array(stream),
        alpha=mx.array(alpha),
        beta=mx.array(beta),
        post_weight=mx.array(scale) if scaled else None,
        post_eps=1e-3,
        next_norm=None if last else norm,
    )
    expected = alpha * stream + beta * rms(branch * scale if scaled else branch, 1e-3)
    close(total, expected)
    if last:
        assert normed is None
    else:
        close(normed, rms(expected) * np.array(norm.weight))
        close(kernels.pre_norm(total, norm, dtype=mx.float32), rms(expected) * np.array(norm.weight))


def test_post_expert_norm_combine() -> None:
    experts, weights, scale = values(COUNT, 3, WIDTH), values(COUNT, 3), values(WIDTH)
    combined = kernels.post_expert_norm_combine(
        mx.array(experts), mx.array(weights), norm_weight=mx.array(scale), eps=EPSILON
    )
    close(combined, (rms(experts * scale) * weights[..., None]).sum(1))


@pytest.mark.parametrize("offset", [0, 5, [3, 70]])
def test_qk_norm_and_rope(offset: int | list[int]) -> None:
    joint = values(ROWS, COUNT, 2 * (HEADS + KV_HEADS) * WIDTH)
    options = {"n_heads": HEADS, "n_kv_heads": KV_HEADS, "head_dim": WIDTH, "eps": EPSILON, "query_scale": 1.7}
    parts = joint.reshape(ROWS, COUNT, -1, WIDTH)
    expected = rms(parts[:, :, :HEADS]) * 1.7, rms(parts[:, :, HEADS : HEADS + KV_HEADS])
    for actual, plain in zip(kernels.qk_norm(mx.array(joint), **options), expected, strict=True):
        close(actual, plain)
    starts = offset if isinstance(offset, list) else [offset] * ROWS
    given = mx.array(offset) if isinstance(offset, list) else offset
    turned = kernels.qk_norm_rope(mx.array(joint), **options, rope_base=100.0, offset=given)
    for actual, plain in zip(turned, expected, strict=True):
        assert actual.shape == plain.shape
        for row, token, head in np.ndindex(plain.shape[:3]):
            close(actual[row, token, head], rotated(plain[row, token, head], starts[row] + token, 100.0))


def test_rms_norm_sigmoid_gate() -> None:
    x, gate = values(ROWS, HEADS, COUNT, WIDTH), values(ROWS, COUNT, HEADS * WIDTH)
    expected = rms(x).swapaxes(1, 2).reshape(gate.shape) * sigmoid(gate)
    close(kernels.rms_norm_sigmoid_gate(mx.array(x), mx.array(gate), eps=EPSILON), expected)


def test_activations_keep_their_type() -> None:
    half = {"dtype": mx.bfloat16}
    norm = nn.RMSNorm(WIDTH)
    total, normed = kernels.norm_add_norm(
        mx.ones((COUNT, WIDTH), **half),
        mx.ones((COUNT, WIDTH)),
        alpha=mx.ones(WIDTH),
        beta=mx.ones(WIDTH),
        post_weight=mx.ones(WIDTH),
        post_eps=EPSILON,
        next_norm=norm,
    )
    combined = kernels.post_expert_norm_combine(
        mx.ones((COUNT, 2, WIDTH), **half), mx.ones((COUNT, 2)), norm_weight=mx.ones(WIDTH, **half), eps=EPSILON
    )
    queries, keys = kernels.qk_norm_rope(
        mx.ones((1, COUNT, 4 * WIDTH), **half),
        n_heads=1,
        n_kv_heads=1,
        head_dim=WIDTH,
        eps=EPSILON,
        query_scale=2.0,
        rope_base=10.0,
        offset=0,
    )
    gated = kernels.rms_norm_sigmoid_gate(mx.ones((1, 1, COUNT, WIDTH), **half), mx.ones((1, COUNT, WIDTH)), eps=1.0)
    found = [one.dtype for one in (total, normed, combined, queries, keys, gated)]
    assert found == [mx.float32, *[mx.bfloat16] * 5]


def test_all_of_mlx_lms_kernels_are_here_with_their_parameters() -> None:
    originals = {name: importlib.import_module(f"mlx_lm.kernels.{_module(name)}") for name in mlx_lm.kernels.__all__}
    assert kernels.PORTABLE.keys() == originals.keys(), "mlx_lm.kernels has other kernels (models/kernels.py)"
    for name, module in originals.items():
        theirs, ours = inspect.signature(getattr(module, name)), inspect.signature(kernels.PORTABLE[name])
        assert list(ours.parameters) == list(theirs.parameters), name
        assert [p.kind for p in ours.parameters.values()] == [p.kind for p in theirs.parameters.values()], name


def _module(name: str) -> str:
    return "norm_add_norm" if name == "pre_norm" else name


def test_they_stand_in_for_mlx_lms_where_there_is_no_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = types.ModuleType("mlx_lm.models.loaded_before")
    loaded.qk_norm = original = object()
    monkeypatch.setitem(sys.modules, loaded.__name__, loaded)
    for name in kernels.PORTABLE:
        monkeypatch.setattr(mlx_lm.kernels, name, original)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    kernels.replace_metal()
    assert loaded.qk_norm is mlx_lm.kernels.pre_norm is original
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    kernels.replace_metal()
    assert loaded.qk_norm is kernels.qk_norm
    assert mlx_lm.kernels.pre_norm is kernels.pre_norm
