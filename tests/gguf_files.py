"""GGUF files for tests, written by the `gguf` package, which nobody here wrote."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}

# Byte-level BPE wants a token for each of the 256 bytes; this is how GPT-2 writes them.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = [chr(byte) for byte in PRINTABLE] + [chr(256 + index) for index in range(len(OTHERS))]
MERGES = ["t h", "th e", "Ġ the", "l l", "o w", "h e", "he ll", "hell o", "Ġ w", "1 2", "12 3"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
WHOLE = "qux"
"""A token that no merges lead to."""
VOCABULARY = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), WHOLE, *SPECIAL]
VOCABULARY += [f"[PAD{index}]" for index in range(-len(VOCABULARY) % 32)]
TYPES = [3 if token in SPECIAL else 5 if token.startswith("[PAD") else 1 for token in VOCABULARY]


def name_of(name: str) -> str:
    """llama.cpp's name of a tensor that Hugging Face calls ``name``."""
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of the llama architecture."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def quantized(weight: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The values that are left of ``weight`` once it is stored as ``kind``."""
    return quants.dequantize(quants.quantize(weight, kind), kind).astype(np.float32)


def write(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    metadata: dict[str, Any] | None = None,
    tokenizer: bool = True,
    split: int = 0,
) -> Path:
    """A GGUF file of the network that ``config`` and ``weights`` describe in Hugging Face's terms.

    ``metadata`` adds or replaces keys; None removes one. With ``split`` tensors in each, it is the first of several.
    """
    values = network(config) | (byte_level() if tokenizer else {}) | (metadata or {})
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    for key, value in values.items():
        _add(writer, key, value)
    for name, weight in weights.items():
        own = kind if weight.ndim > 1 else GGMLQuantizationType.F32
        rows = _row_order(config, name, weight)
        writer.add_tensor(name_of(name), quants.quantize(rows, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-*-of-*.gguf")) if split else path


def _row_order(config: dict[str, Any], name: str, weight: np.ndarray) -> np.ndarray:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = name.split(".")[-2]
    return permuted(weight, heads[part]) if config["model_type"] == "llama" and part in heads else weight


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = gguf.GGUFValueType
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_key_value(key, value, kinds.UINT32)
    elif isinstance(value, float):
        writer.add_key_value(key, value, kinds.FLOAT32)
    else:
        writer.add_string(key, value)


def network(config: dict[str, Any]) -> dict[str, Any]:
    """The metadata of the architecture."""
    prefix = config["model_type"]
    return {
        f"{prefix}.context_length": config["max_position_embeddings"],
        f"{prefix}.embedding_length": config["hidden_size"],
        f"{prefix}.block_count": config["num_hidden_layers"],
        f"{prefix}.feed_forward_length": config["intermediate_size"],
        f"{prefix}.attention.head_count": config["num_attention_heads"],
        f"{prefix}.attention.head_count_kv": config["num_key_value_heads"],
        f"{prefix}.attention.key_length": config["head_dim"],
        f"{prefix}.attention.value_length": config["head_dim"],
        f"{prefix}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{prefix}.rope.freq_base": config["rope_theta"],
    }


def byte_level(pre: str = "qwen2") -> dict[str, Any]:
    """The metadata of a small GPT-2-like tokenizer."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": VOCABULARY.index("<|im_end|>"),
        "tokenizer.ggml.bos_token_id": VOCABULARY.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
