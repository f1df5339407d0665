"""Well-known models, so that their memory can be planned without their files and without a network.

Dimensions: the ``config.json`` of each model on the Hugging Face Hub (https://huggingface.co/Qwen). The counts of
parameters that come out of them, which the same pages show, are checked in tests/test_plan.py.
"""

import re
from dataclasses import dataclass
from typing import Any

QWEN2 = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960, "vocab_size": 151936}
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
LONG = {"max_position_embeddings": 262144}
STARTER = {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "max_position_embeddings": 8192,
    "torch_dtype": "float16",
    "jackfield": {"source": "gguf"},
    "quantization": {"group_size": 32, "bits": 4, "model.embed_tokens": {"group_size": 32, "bits": 8}},
}

DIMENSIONS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)

# AWQ, GPTQ, FP8 and the like lay weights out in ways that a name does not tell.
QUANTIZATION = re.compile(r"(-mlx)?-((?P<bits>[234568])bit|bf16|fp16)", re.IGNORECASE)
OTHER_FORMAT = re.compile(r"awq|gptq|gguf|fp8|fp4|int[48]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Known:
    """A model of the catalogue."""

    family: str
    size: str
    pattern: str
    """Of the name's part before any quantization, without the organization."""
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """As people say it."""
        return f"{self.family} {self.size}"


def _dense(base: dict[str, Any], *dimensions: int, tied: bool) -> dict[str, Any]:
    return base | dict(zip(DIMENSIONS, dimensions, strict=True)) | {"tie_word_embeddings": tied}


def _qwen2(size: str, *dimensions: int, vocabulary: int, tied: bool) -> Known:
    config = _dense(QWEN2, *dimensions, tied=tied) | {"vocab_size": vocabulary}
    return Known("Qwen2.5", size, rf"qwen2\.5(-coder)?-{re.escape(size)}(-instruct)?", config)


def _qwen3(size: str, *dimensions: int, tied: bool) -> Known:
    return Known("Qwen3", size, rf"qwen3-{re.escape(size)}(-base)?", _dense(QWEN3, *dimensions, tied=tied))


A3B = _dense(QWEN3_MOE, 2048, 6144, 48, 32, 4, tied=False)
QWEN3_4B = _qwen3("4B", 2560, 9728, 36, 32, 8, tied=True)

MODELS = (
    Known("SmolLM2", "135M", "starter", _dense(STARTER, 576, 1536, 30, 9, 3, tied=True) | {"vocab_size": 49152}),
    _qwen2("0.5B", 896, 4864, 24, 14, 2, vocabulary=151936, tied=True),
    _qwen2("1.5B", 1536, 8960, 28, 12, 2, vocabulary=151936, tied=True),
    _qwen2("3B", 2048, 11008, 36, 16, 2, vocabulary=151936, tied=True),
    _qwen2("7B", 3584, 18944, 28, 28, 4, vocabulary=152064, tied=False),
    _qwen2("14B", 5120, 13824, 48, 40, 8, vocabulary=152064, tied=False),
    _qwen2("32B", 5120, 27648, 64, 40, 8, vocabulary=152064, tied=False),
    _qwen3("0.6B", 1024, 3072, 28, 16, 8, tied=True),
    _qwen3("1.7B", 2048, 6144, 28, 16, 8, tied=True),
    QWEN3_4B,
    Known("Qwen3", "4B-2507", "qwen3-4b-(instruct|thinking)-2507", QWEN3_4B.config | LONG),
    _qwen3("8B", 4096, 12288, 36, 32, 8, tied=False),
    _qwen3("14B", 5120, 17408, 40, 40, 8, tied=False),
    Known("Qwen3", "30B-A3B", "qwen3-30b-a3b(-base)?", A3B),
    Known("Qwen3", "30B-A3B-2507", "qwen3-30b-a3b-(instruct|thinking)-2507", A3B | LONG),
    Known("Qwen3", "Coder-30B-A3B", "qwen3-coder-30b-a3b-instruct", A3B | LONG),
    _qwen3("32B", 5120, 25600, 64, 64, 8, tied=False),
)
"""Smaller ones of a family first."""


def find(name: str) -> Known | None:
    """The catalogue's entry for a model's name, whatever its organization and quantization."""
    base = _base(name)
    if OTHER_FORMAT.search(base):
        return None
    match = QUANTIZATION.search(base)
    plain = base[: match.start()] if match else base
    return next((known for known in MODELS if re.fullmatch(known.pattern, plain, re.IGNORECASE)), None)


def config_for(name: str) -> dict[str, Any] | None:
    """What ``config.json`` of the model ``name`` says about its dimensions; None if it is not in the catalogue."""
    known = find(name)
    return known.config | quantization_in(name) if known else None


def smaller(name: str) -> list[Known]:
    """Models of the same family with fewer parameters, the largest first; empty if ``name`` is not known."""
    known = find(name)
    family = [other for other in MODELS if known and other.family == known.family]
    return family[: family.index(known)][::-1] if known else []


def quantization_in(name: str) -> dict[str, Any]:
    """The quantization that a name ends in: ``-4bit``, as mlx_lm.convert makes it, in groups of 64; else none."""
    match = QUANTIZATION.search(_base(name))
    if match is None or match["bits"] is None:
        return {}
    return quantization(int(match["bits"]))


def quantization(bits: int) -> dict[str, Any]:
    """What mlx_lm.convert writes into ``config.json``."""
    return {"quantization": {"group_size": 64, "bits": bits}}


def _base(name: str) -> str:
    return name.rpartition("/")[2].partition("@")[0]
