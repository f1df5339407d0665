"""Hidden states, had from mlx-lm's networks and pooled: in groups, in parts, and by hand it comes to the same."""

import importlib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from jackfield.engine.pooling import Pooler
from model_fixtures import tiny_config

VOCABULARY = 100
WIDTH = 64
CONFIG: dict[str, Any] = {
    **tiny_config("", VOCABULARY),
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "shared_expert_intermediate_size": 32,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "query_pre_attn_scalar": 16,
    "layer_norm_epsilon": 1e-5,
    "layer_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "n_head": 4,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_inner": 128,
    "n_positions": 512,
    "n_ctx": 512,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "state_size": 8,
    "conv_kernel": 4,
    "time_step_rank": 4,
    "expand": 2,
    "use_bias": False,
    "use_conv_bias": True,
}
INPUTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [3], [40, 41, 42, 43, 44]]
NETWORKS = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gpt_oss",
    "qwen3_next",
    "mamba",
    "gpt2",
    "phi3",
    "qwen3_vl",
]
"""Dense ones and experts; with windows, recurrent states and neither; the network in a model, or one further in."""


def network(architecture: str) -> nn.Module:
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    text = {"text_config": CONFIG | {"model_type": architecture}}
    model: nn.Module = module.Model(module.ModelArgs.from_dict(CONFIG | text | {"model_type": architecture}))
    return model


def pooler(model: nn.Module) -> Pooler:
    found = Pooler.find(model, VOCABULARY)
    assert found is not None
    return found


def close(one: Any, other: Any) -> bool:
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max()))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_vectors_do_not_depend_on_company(architecture: str) -> None:
    pool = pooler(network(architecture))
    for pooling in ("mean", "last"):
        together = pool(INPUTS, pooling)
        assert together.shape == (len(INPUTS), pool.width)
        assert together.dtype == np.float32
        for tokens, vector in zip(INPUTS, together, strict=True):
            assert close(vector, pool([tokens], pooling)[0])


@pytest.mark.parametrize("architecture", NETWORKS)
def test_vectors_do_not_depend_on_parts(architecture: str) -> None:
    model = network(architecture)
    pool, (tokens, *_) = pooler(model), INPUTS
    for pooling in ("mean", "last"):
        caches = make_prompt_cache(model)
        parts = [pool([tokens[start : start + 4]], pooling, caches)[0] for start in range(0, len(tokens), 4)]
        assert len(parts) == 3
        assert close(parts[-1] if pooling == "last" else sum(parts), pool([tokens], pooling)[0])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3_next", "mamba", "phi3"])
def test_what_is_pooled_is_what_the_head_gets(architecture: str) -> None:
    model = network(architecture)
    last = pooler(model)([INPUTS[0]], "last")
    tables = [
        array
        for name, array in tree_flatten(model.parameters())
        if name.endswith(("embed_tokens.weight", "lm_head.weight", "embeddings.weight"))
    ]
    assert any(close(mx.array(last) @ table.T, model(mx.array(INPUTS[:1]))[0, -1]) for table in tables)


def test_the_mean_is_over_the_texts_own_tokens() -> None:
    model = network("qwen3")
    states = model.model(mx.array(INPUTS[2:]))
    assert close(pooler(model)(INPUTS, "mean")[2], mx.sum(states[0], axis=0))
    assert close(pooler(model)(INPUTS, "last")[2], states[0, -1])


def test_half_precision_is_pooled_in_full() -> None:
    model = network("llama")
    model.set_dtype(mx.float16)
    # Nearly as large as float16 goes: the sum of a few would be infinite.
    model.model.norm.weight = mx.full((WIDTH,), 8000.0, mx.float16)
    assert np.isfinite(pooler(model)(INPUTS, "mean")).all()


def test_a_network_that_keeps_its_head_inside_makes_none() -> None:
    assert Pooler.find(network("gpt_neox"), VOCABULARY) is None
