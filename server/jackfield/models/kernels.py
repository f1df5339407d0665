"""mlx-lm's Metal kernels as plain MLX, for devices without Metal: models that use them (Muse Spark) run there too.

Each function does what the one of its name in ``mlx_lm.kernels`` does, with the same roundings: sums in float32, and
the type of the activations wherever the kernel casts to it.
"""

import importlib
import sys
from functools import partial

import mlx.core as mx
from mlx import nn


def replace_metal() -> None:
    """Put these in the place of mlx-lm's, in its model modules too, unless this machine has Metal."""
    if mx.metal.is_available():
        return
    kernels = importlib.import_module("mlx_lm.kernels")
    models = [module for name, module in sys.modules.items() if name.startswith("mlx_lm.models.")]
    for name in kernels.__all__:
        for module in (kernels, *models):
            if name in PORTABLE and hasattr(module, name):
                setattr(module, name, PORTABLE[name])


def expert_routing(
    logits: mx.array, expert_bias: mx.array, *, top_k: int, multiplier: float, score_eps: float, route_scale: float
) -> list[mx.array]:
    """Each token's experts, the best first, and their weights, which add up to ``route_scale``; both [..., top_k]."""
    scores = mx.sigmoid(logits * multiplier)
    best = mx.argsort(-(scores + expert_bias), axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, best, axis=-1)
    return [best.astype(mx.uint32), weights / (mx.sum(weights, axis=-1, keepdims=True) + score_eps) * route_scale]


def norm_add_norm(
    branch: mx.array,
    stream: mx.array,
    *,
    alpha: mx.array,
    beta: mx.array,
    post_weight: mx.array | None,
    post_eps: float,
    next_norm: nn.RMSNorm | None,
) -> tuple[mx.array, mx.array | None]:
    """The float32 stream with the normed branch added to it, and that sum normed for what comes next."""
    if post_weight is not None:
        branch = (post_weight.astype(branch.dtype).astype(mx.float32) * branch).astype(branch.dtype)
    normed = _normed(branch, post_eps).astype(branch.dtype)
    total = alpha * stream + beta * normed.astype(mx.float32)
    return total, None if next_norm is None else pre_norm(total, next_norm, dtype=branch.dtype)


def pre_norm(stream: mx.array, norm: nn.RMSNorm, *, dtype: mx.Dtype) -> mx.array:
    """The float32 stream normed by ``norm``, as ``dtype``."""
    return (_normed(stream, norm.eps) * norm.weight).astype(dtype)


def post_expert_norm_combine(experts: mx.array, weights: mx.array, *, norm_weight: mx.array, eps: float) -> mx.array:
    """The experts' outputs [..., k, dimension], each normed, added up by their weights [..., k] in order."""
    parts = _normed(experts.astype(mx.float32) * norm_weight, eps)
    parts = parts * weights.astype(experts.dtype).astype(mx.float32)[..., None]
    total = mx.zeros(parts[..., 0, :].shape, experts.dtype)
    for expert in range(parts.shape[-2]):
        total = (total.astype(mx.float32) + parts[..., expert, :]).astype(experts.dtype)
    return total


def qk_norm(
    qkvg: mx.array, *, n_heads: int, n_kv_heads: int, head_dim: int, eps: float, query_scale: float
) -> list[mx.array]:
    """Normed queries and keys [rows, count, heads, dimension] out of the joint projection [rows, count, ...]."""
    heads = qkvg[..., : (n_heads + n_kv_heads) * head_dim].reshape(*qkvg.shape[:-1], -1, head_dim)
    normed = _normed(heads, eps).astype(qkvg.dtype)
    queries = (normed[..., :n_heads, :].astype(mx.float32) * query_scale).astype(qkvg.dtype)
    return [queries, normed[..., n_heads:, :]]


def qk_norm_rope(
    qkvg: mx.array,
    *,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    eps: float,
    query_scale: float,
    rope_base: float,
    offset: int | mx.array,
) -> list[mx.array]:
    """The same, rotated by their positions from ``offset`` (an int or [rows]) on."""
    both = qk_norm(qkvg, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, eps=eps, query_scale=query_scale)
    rotate = partial(mx.fast.rope, dims=head_dim, traditional=True, base=rope_base, scale=1.0, offset=offset)
    return [rotate(one.swapaxes(1, 2)).swapaxes(1, 2) for one in both]


def rms_norm_sigmoid_gate(x: mx.array, gate: mx.array, *, eps: float) -> mx.array:
    """Each head of x [rows, heads, count, dimension] normed and gated by its part of ``gate``, in whose shape it is."""
    rows, heads, count, dimension = x.shape
    gates = mx.sigmoid(gate.astype(mx.float32)).reshape(rows, count, heads, dimension)
    return (_normed(x.swapaxes(1, 2), eps) * gates).astype(x.dtype).reshape(rows, count, heads * dimension)


def _normed(x: mx.array, eps: float) -> mx.array:
    """RMSNorm without a weight, in float32."""
    return mx.fast.rms_norm(x.astype(mx.float32), None, eps)


PORTABLE = {
    function.__name__: function
    for function in (
        expert_routing,
        norm_add_norm,
        post_expert_norm_combine,
        pre_norm,
        qk_norm,
        qk_norm_rope,
        rms_norm_sigmoid_gate,
    )
}
"""By the names that ``mlx_lm.kernels`` lists; tests/test_mlx_lm_contract.py says when it has others."""
