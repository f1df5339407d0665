"""Random networks that can be divided among two and among three, by layers and within them, and adapters for them."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2, qwen3_moe
from safetensors.numpy import load_file, save_file

from model_fixtures import TOKENIZER_FILES, _copy, random_weights, tiny_config, write_model

SHARP = 8.0
"""With logits so far apart a token is not another one because of a rounding error."""


def write_group_model(starter: Path, folder: Path, seed: int = 0) -> Path:
    """A Qwen2 network with the starter's tokenizer and template; returns the folder."""
    folder.mkdir(parents=True)
    _copy(starter, folder, TOKENIZER_FILES)
    config = tiny_config(
        "qwen2",
        49152,
        hidden_size=192,
        head_dim=32,
        intermediate_size=384,
        num_attention_heads=6,
        num_key_value_heads=6,
        num_hidden_layers=8,
        tie_word_embeddings=False,
        eos_token_id=2,
    )
    weights = random_weights(config, seed)
    weights["lm_head.weight"] *= SHARP
    write_model(folder, config, weights)
    return folder


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}


def write_experts_model(starter: Path, folder: Path) -> Path:
    """The same of a Qwen3 network with experts, for two."""
    folder.mkdir(parents=True)
    _copy(starter, folder, TOKENIZER_FILES)
    more = {"tie_word_embeddings": False, "eos_token_id": 2, "mlp_only_layers": [], "norm_topk_prob": True}
    config = tiny_config("qwen3_moe", 49152, **EXPERTS, **more)
    mx.random.seed(3)
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(config))
    weights = {name: np.array(array) for name, array in tree_flatten(model.parameters())}
    weights["lm_head.weight"] *= SHARP
    write_model(folder, config, weights)
    return folder


def write_quantized_model(model: Path, folder: Path) -> Path:
    """A Qwen2 network's copy at 4 bits."""
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text())
    network = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    network.load_weights(str(model / "model.safetensors"))
    nn.quantize(network, group_size=32, bits=4)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())))
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 32, "bits": 4}}))
    return folder


def write_adapter(model: Path, folder: Path, seed: int, *, dora: bool = False, layers: str = "model.layers") -> Path:
    """An adapter of all linear layers, or of those whose names begin like that, as mlx-lm writes it."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for layer, (*experts, outputs, inputs) in linear_layers(model, layers).items():
        down, up = (4, inputs), (outputs, 4)
        a, b = (random.normal(0, 0.1, (*experts, *shape)).astype(np.float32) for shape in (down, up))
        # Experts' matrices are the other way round than those of linear layers.
        arrays |= {f"{layer}.lora_a": a if experts else a.T, f"{layer}.lora_b": b if experts else b.T}
        if dora:
            arrays[f"{layer}.m"] = random.uniform(0.5, 1.5, outputs).astype(np.float32)
    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "adapters.safetensors")
    config = {"fine_tune_type": "dora" if dora else "lora", "lora_parameters": {"rank": 4, "scale": 4.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_peft_adapter(model: Path, folder: Path, seed: int, *, layers: str, **config: Any) -> Path:
    """LoRA as PEFT writes it, of linear layers without experts."""
    random = np.random.default_rng(seed)
    arrays = {}
    for layer, (outputs, inputs) in linear_layers(model, layers).items():
        arrays[f"base_model.model.{layer}.lora_A.weight"] = random.normal(0, 0.1, (8, inputs)).astype(np.float32)
        arrays[f"base_model.model.{layer}.lora_B.weight"] = random.normal(0, 0.1, (outputs, 8)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(arrays, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **config}))
    return folder


def linear_layers(model: Path, beginning: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's projections in layers whose names begin like that."""
    weights = load_file(model / "model.safetensors")
    named = {name.removesuffix(".weight"): array.shape for name, array in weights.items() if "_proj.weight" in name}
    return {name: shape for name, shape in named.items() if name.startswith(beginning)}
