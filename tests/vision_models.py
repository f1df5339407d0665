"""Small random networks of the one architecture with images that mlx-lm has, and pictures for them."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import muse_spark
from mlx_lm.processors.muse_spark import Processor
from numpy.typing import NDArray

from jackfield.engine.request import PromptImage
from jackfield.models.kernels import replace_metal
from model_fixtures import TINY_CONTEXT, write_config

replace_metal()

PATCH = 4
"""Pixels; a token is two patches wide and high."""
SLIDING = ["sliding_attention", "full_attention"]
PLAIN = ["full_attention", "full_attention"]

IMAGE_TOKENS = ("<|image_start|>", "<|image_end|>", "<|patch|>")

TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{ '<|patch|>' }}{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def config(vocabulary: int, image_token: int, layers: list[str] = SLIDING) -> dict[str, Any]:
    """A config.json."""
    text = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": len(layers),
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "post_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0},
        "layer_rope_theta": [10000.0, 0] * (len(layers) // 2),
        "layer_types": layers,
        "sliding_window": 48,
        "final_logit_softcapping": 20.0,
        "output_multiplier": 0.5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_hidden_size": 32,
        "moe_intermediate_size": 48,
        "max_position_embeddings": TINY_CONTEXT,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
    }
    # mlx-lm has no ears; transformers, which looks at the config for the tokenizer, checks that they would fit.
    audio = {"out_hidden_size": text["hidden_size"]}
    parts = {"text_config": text, "vision_config": vision, "audio_config": audio}
    return {"model_type": "muse_spark", **parts, "image_token_id": image_token}


def network(settings: dict[str, Any]) -> nn.Module:
    """The network of a config, with large weights, so that tokens are far apart and rounding never decides."""
    mx.random.seed(3)
    model = muse_spark.Model(muse_spark.ModelArgs.from_dict(settings))
    scaled = [(name, _weights(name, value)) for name, value in tree_flatten(model.parameters())]
    model.load_weights(scaled)
    mx.eval(model.parameters())
    return model


def _weights(name: str, like: mx.array) -> mx.array:
    if like.ndim > 1:
        return mx.random.normal(like.shape) * 1.5 * like.shape[-1] ** -0.5
    return like


def processor(settings: dict[str, Any]) -> Processor:
    """mlx-lm's image processor for it."""
    return Processor.from_config(settings)


def picture(seed: int, rows: int = 2, columns: int = 3) -> NDArray[np.uint8]:
    """Random pixels that become ``rows`` times ``columns`` tokens."""
    side = 2 * PATCH
    return np.random.default_rng(seed).integers(0, 256, (rows * side, columns * side, 3), np.uint8)


def prompt_image(start: int, pixels: NDArray[np.uint8]) -> PromptImage:
    """The picture at its place in a prompt."""
    height, width, _ = pixels.shape
    count = height * width // (2 * PATCH) ** 2
    return PromptImage(start, count, pixels, hashlib.sha256(pixels.tobytes()).digest())


def write_vision_model(starter: Path, folder: Path, layers: list[str] = SLIDING, rows: int = 4) -> Path:
    """A checkpoint with the starter's tokenizer and the tokens that images need; its vocabulary divides by ``rows``."""
    tokenizer = json.loads((starter / "tokenizer.json").read_text())
    vocabulary = len(tokenizer["model"]["vocab"])
    like = tokenizer["added_tokens"][0]
    added = [like | {"id": vocabulary + n, "content": text} for n, text in enumerate(IMAGE_TOKENS)]
    tokenizer["added_tokens"] += added
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = json.loads((starter / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"chat_template": TEMPLATE}))
    # Rows that no token has, as many checkpoints have them.
    settings = config(-(-(vocabulary + len(added)) // rows) * rows, added[-1]["id"], layers)
    write_config(folder, settings | {"eos_token_id": json.loads((starter / "config.json").read_text())["eos_token_id"]})
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network(settings).parameters())))
    return folder


def copy_of(folder: Path, target: Path) -> Path:
    """Another folder with the same model, to be changed."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target
