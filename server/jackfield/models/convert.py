"""A GGUF file as a model folder in MLX's layout: config.json, model.safetensors and the tokenizer's files.

Tensor and metadata names: ``gguf-py/gguf/constants.py``; what they stand for in a Hugging Face checkpoint:
``convert_hf_to_gguf.py``, whose permutation of llama's q and k rows is undone here.
"""

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from jackfield.models import blocks
from jackfield.models.gguf import GGUF, GGUFError, Metadata, Tensor, damaged
from jackfield.models.gguf_tokenizer import end_token_ids, write_tokenizer
from jackfield.models.progress import SILENT, Progress

VERSION = 1
"""Raise it when the same GGUF file comes out as another folder: old folders are then not used any more."""

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CHUNK_BYTES = 64 * 2**20

MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
TOP = re.compile(r"(token_embd|output_norm|output)\.(weight)")
ROPE_FACTORS = "rope_freqs.weight"
LLAMA_BIAS = "blk.0.attn_output.bias"
"""A llama with this tensor has biases on all projections of its attention."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The network's dimensions."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def of(self, part: str) -> tuple[int, ...]:
        """The shape of a module's weight in the file, or of its bias if the first dimension alone is taken."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "token_embd": (self.vocabulary, self.hidden),
            "output": (self.vocabulary, self.hidden),
            "attn_q": (query, self.hidden),
            "attn_k": (key, self.hidden),
            "attn_v": (key, self.hidden),
            "attn_output": (self.hidden, query),
            "attn_q_norm": (self.head_dim,),
            "attn_k_norm": (self.head_dim,),
            "ffn_gate": (self.intermediate, self.hidden),
            "ffn_up": (self.intermediate, self.hidden),
            "ffn_down": (self.hidden, self.intermediate),
        }.get(part, (self.hidden,))


def convert(path: Path, folder: Path, progress: Progress = SILENT) -> None:
    """Write the model in ``path`` into the existing ``folder``.

    Raises:
        GGUFError: the file is damaged, or holds an architecture, quantization or tokenizer that is not supported.
    """
    with GGUF(path) as file:
        shape = _shape(file)
        tensors = [_target(file, tensor, shape) for tensor in file.tensors.values() if tensor.name != ROPE_FACTORS]
        config = _config(file, shape, tensors)
        write_tokenizer(path, file.metadata, folder)
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
        _write_weights(file, tensors, folder / "model.safetensors", progress)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


# Hyperparameters


def _shape(file: GGUF) -> Shape:
    metadata = file.metadata
    architecture = metadata.string("general.architecture")
    if architecture not in ARCHITECTURES:
        raise GGUFError(
            f"{file.path.name} has the architecture {architecture!r}, which is not served from GGUF files.",
            suggestions=(
                f"Take a GGUF file of one of these architectures: {', '.join(ARCHITECTURES)}.",
                "Take the model in MLX or Hugging Face format: many more are served from those.",
            ),
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise damaged(file.path, "it has no token embedding")
    shape = _dimensions(metadata, architecture, embedding.shape[0])
    _check_shape(file, shape)
    return shape


def _dimensions(metadata: Metadata, architecture: str, vocabulary: int) -> Shape:
    def get(key: str, default: int | None = None) -> int:
        return metadata.integer(f"{architecture}.{key}", default)

    heads, hidden = get("attention.head_count"), get("embedding_length")
    return Shape(
        architecture=architecture,
        layers=get("block_count"),
        hidden=hidden,
        intermediate=get("feed_forward_length"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", hidden // max(heads, 1)),
        vocabulary=vocabulary,
    )


def _check_shape(file: GGUF, shape: Shape) -> None:
    if min(shape.layers, shape.hidden, shape.intermediate, shape.heads, shape.kv_heads, shape.head_dim) < 1:
        raise damaged(file.path, "one of its dimensions is zero")
    if len(file.metadata.strings("tokenizer.ggml.tokens")) > shape.vocabulary:
        raise damaged(file.path, "it has more tokens than embeddings")
    rotated = file.metadata.integer(f"{shape.architecture}.rope.dimension_count", shape.head_dim)
    value = file.metadata.integer(f"{shape.architecture}.attention.value_length", shape.head_dim)
    unusual = shape.heads % shape.kv_heads or shape.head_dim % 2 or {rotated, value} != {shape.head_dim}
    if unusual or file.metadata.integer(f"{shape.architecture}.expert_count", 0):
        raise GGUFError(
            f"{file.path.name} has attention heads or experts of a kind that is not served from GGUF files.",
            suggestions=("Take the model in MLX or Hugging Face format.",),
        )
    _check_parts(file, shape)


def _check_parts(file: GGUF, shape: Shape) -> None:
    """Every tensor that the architecture needs must be there."""
    if shape.layers > len(file.tensors):
        raise damaged(file.path, f"it announces {shape.layers} layers but has {len(file.tensors)} tensors")
    names = _layer_tensors(file, shape.architecture)
    wanted = ["output_norm.weight", *(f"blk.{layer}.{name}" for layer in range(shape.layers) for name in names)]
    if missing := [name for name in wanted if name not in file.tensors]:
        raise damaged(file.path, f"{len(missing)} tensors are missing, for example {missing[0]!r}")


def _layer_tensors(file: GGUF, architecture: str) -> tuple[str, ...]:
    """The tensors of one layer: these, and no others."""
    weights = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    norms = ("attn_q_norm", "attn_k_norm") if architecture == "qwen3" else ()
    biases: tuple[str, ...] = ("attn_q", "attn_k", "attn_v") if architecture == "qwen2" else ()
    if architecture == "llama" and LLAMA_BIAS in file.tensors:
        biases = ("attn_q", "attn_k", "attn_v", "attn_output")
    return (*(f"{part}.weight" for part in weights + norms), *(f"{part}.bias" for part in biases))


def _config(file: GGUF, shape: Shape, tensors: list["Target"]) -> dict[str, Any]:
    """``config.json`` as transformers and mlx-lm read it."""
    metadata, architecture = file.metadata, shape.architecture
    config = {
        "model_type": architecture,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": max(1, metadata.integer(f"{architecture}.context_length")),
        "rms_norm_eps": metadata.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number(f"{architecture}.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": end_token_ids(metadata),
        # GGUF says nothing about it. Qwen's activations overflow 16-bit floats with few exponent bits.
        "torch_dtype": "float16" if architecture == "llama" else "bfloat16",
        "jackfield": {"source": "gguf", "converter": VERSION},
    }
    if architecture == "llama" and LLAMA_BIAS in file.tensors:
        config["attention_bias"] = True
    if (scaling := _rope_scaling(file, shape)) is not None:
        config["rope_scaling"] = scaling
    if (quantization := _quantization(tensors)) is not None:
        config["quantization"] = quantization
    return config


def _quantization(tensors: list["Target"]) -> dict[str, Any] | None:
    """mlx-lm's description: the commonest width, and the modules that have another."""
    bits = {target.module: target.bits for target in tensors if target.bits is not None}
    if not bits:
        return None
    common = Counter(bits.values()).most_common(1)[0][0]
    others = {module: {"group_size": blocks.GROUP, "bits": width} for module, width in bits.items() if width != common}
    return {"group_size": blocks.GROUP, "bits": common, **others}


def _rope_scaling(file: GGUF, shape: Shape) -> dict[str, Any] | None:
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, shape)
    prefix = f"{shape.architecture}.rope.scaling"
    kind = file.metadata.string(f"{prefix}.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise GGUFError(
            f"{file.path.name} has the RoPE scaling {kind!r}, which is not served from GGUF files.",
            suggestions=("Take the model in MLX or Hugging Face format.",),
        )
    scaling: dict[str, Any] = {"type": kind, "factor": file.metadata.number(f"{prefix}.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = file.metadata.integer(f"{prefix}.original_context_length")
    return scaling


def _llama3_scaling(file: GGUF, shape: Shape) -> dict[str, Any]:
    """Llama 3.1's RoPE scaling, which a GGUF file holds only as the factors that come out of it."""
    stored = _floats(file, file.tensors[ROPE_FACTORS])
    factor = float(stored.max(initial=1.0))
    theta = file.metadata.number(f"{shape.architecture}.rope.freq_base", 10000.0)
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = _llama3_factors(theta, shape.head_dim, factor)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise GGUFError(
            f"{file.path.name} has RoPE factors that are not Llama 3.1's, which are not served from GGUF files.",
            suggestions=("Take the model in MLX or Hugging Face format.",),
        )
    return scaling


def _llama3_factors(theta: float, head_dim: int, factor: float) -> npt.NDArray[np.float64]:
    """What each frequency is divided by (``LlamaModel.generate_extra_tensors`` in convert_hf_to_gguf.py)."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((8192 / wavelengths - 1.0) / (4.0 - 1.0), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _floats(file: GGUF, tensor: Tensor) -> npt.NDArray[np.float32]:
    if tensor.type.name != "F32":
        raise damaged(file.path, f"tensor {tensor.name!r} is {tensor.type.name}, not F32")
    return file.rows(tensor, 0, tensor.rows).view("<f4").reshape(-1)


# Weights


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the file and the module it becomes."""

    source: Tensor
    module: str
    kind: str
    """``weight`` or ``bias``."""
    permuted_head_dim: int | None
    """Rows of a head that llama.cpp has permuted; None if it left them."""

    @property
    def bits(self) -> int | None:
        """Width of the quantized values; None for plain floats."""
        decoder = blocks.DECODERS.get(self.source.type.name)
        return decoder.bits if decoder else None

    def parts(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (type, shape) of what it becomes in the safetensors file."""
        name, shape = f"{self.module}.{self.kind}", self.source.shape
        if self.bits is None:
            return {name: (self.source.type.name, shape)}
        rows, columns = shape
        groups = (rows, columns // blocks.GROUP)
        return {
            name: ("U32", (rows, columns * self.bits // 32)),
            f"{self.module}.scales": ("F16", groups),
            f"{self.module}.biases": ("F16", groups),
        }


def _target(file: GGUF, tensor: Tensor, shape: Shape) -> Target:
    part, module, kind = _names(file, tensor, shape)
    expected = shape.of(part)[:1] if kind == "bias" else shape.of(part)
    if tensor.shape != expected:
        raise damaged(file.path, f"tensor {tensor.name!r} has the shape {list(tensor.shape)}, not {list(expected)}")
    if len(expected) == 1 and tensor.type.block > 1:
        raise damaged(file.path, f"tensor {tensor.name!r} is {tensor.type.name}, not plain floats")
    permuted = shape.architecture == "llama" and part in ("attn_q", "attn_k")
    return Target(tensor, module, kind, shape.head_dim if permuted else None)


def _names(file: GGUF, tensor: Tensor, shape: Shape) -> tuple[str, str, str]:
    """(Part, module, kind) of a tensor, such as (attn_q, model.layers.0.self_attn.q_proj, weight)."""
    if match := TOP.fullmatch(tensor.name):
        part, kind = match.groups()
        return part, MODULES[part], kind
    match = LAYER.fullmatch(tensor.name)
    known = match and f"{match[2]}.{match[3]}" in _layer_tensors(file, shape.architecture)
    if match is None or not known or int(match[1]) >= shape.layers:
        raise GGUFError(
            f"{file.path.name} has a tensor {tensor.name!r}, which the {shape.architecture} architecture here has not.",
            suggestions=("Take the model in MLX or Hugging Face format.",),
        )
    layer, part, kind = match.groups()
    return part, f"model.layers.{int(layer)}.{MODULES[part]}", kind


def _write_weights(file: GGUF, targets: list[Target], path: Path, progress: Progress) -> None:
    """One safetensors file (github.com/huggingface/safetensors): length and JSON of the header, then the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (kind, shape) in (item for target in targets for item in target.parts().items()):
        start, end = end, end + SIZES[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as out, progress.task(f"Converting {file.path.name}", end) as task:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        base = out.tell()
        out.truncate(base + end)
        for target in targets:
            offsets = {name: base + header[name]["data_offsets"][0] for name in target.parts()}
            _write_target(file, target, out, offsets, task.advance)


SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}


def _write_target(
    file: GGUF, target: Target, out: BinaryIO, offsets: dict[str, int], advance: Callable[[int], None]
) -> None:
    """Decode a tensor piece by piece, so that the largest takes no more memory than the smallest."""
    names = list(offsets)
    for rows in _pieces(file, target):
        for name, part in zip(names, _decoded(file, target, rows), strict=True):
            out.seek(offsets[name])
            out.write(part.tobytes())
            offsets[name] += part.nbytes
            advance(part.nbytes)


def _pieces(file: GGUF, target: Target) -> Iterator[npt.NDArray[np.uint8]]:
    """Raw rows, whole heads at a time."""
    tensor = target.source
    if len(tensor.shape) == 1:
        yield _row_order(target, file.rows(tensor, 0, 1).reshape(tensor.shape[0], -1)).reshape(1, -1)
        return
    unit = target.permuted_head_dim or 1
    step = max(1, CHUNK_BYTES // (tensor.row_bytes * unit)) * unit
    for start in range(0, tensor.rows, step):
        yield _row_order(target, file.rows(tensor, start, min(start + step, tensor.rows)))


def _row_order(target: Target, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Undo llama.cpp's permutation: it interleaves the two halves of each head, for its own kind of RoPE."""
    if target.permuted_head_dim is None:
        return rows
    heads = rows.reshape(-1, target.permuted_head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def _decoded(file: GGUF, target: Target, rows: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], ...]:
    """The parts that `Target.parts` names, for some rows."""
    if target.bits is None:
        return (rows,)
    # Infinite factors are caught below; they are no news on the way.
    with np.errstate(over="ignore", invalid="ignore"):
        groups = blocks.decode(target.source.type.name, target.source.type.size, rows)
        scales, biases = groups.scales.astype("<f2"), groups.biases.astype("<f2")
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise damaged(file.path, f"tensor {target.source.name!r} has values that are no numbers")
    return blocks.pack(groups.q, target.bits), scales, biases
