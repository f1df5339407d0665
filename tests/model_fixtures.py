"""Models that many tests share.

``starter`` is the real one, fetched once through the product into a cache that outlives the test run;
``qwen2_starter`` is the same network as a Qwen checkpoint; ``tiny_model`` is random, and fast.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from jackfield.models.device import Device, detect_device, load_blas
from jackfield.models.sources import resolve

# As in servers: see serving.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before a test module imports MLX.
BLAS = load_blas()

CACHE = Path(os.environ.get("JACKFIELD_CACHE_DIR") or platformdirs.user_cache_dir("jackfield"))

# As Qwen's models are: 151,936 rows of embeddings would be most of a small network, so the starter's vocabulary it is.
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_CONTEXT = 4096
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

TOOL_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}
{{- messages[0].content + '\\n\\n' }}
{%- endif %}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n\
You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' + tool | tojson }}
{%- endfor %}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n\
</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Qwen2.5's way to show and call tools, shortened."""


@pytest.fixture(scope="session")
def device() -> Device:
    """What MLX computes on here, with the best BLAS there is."""
    return detect_device(BLAS)


@pytest.fixture(scope="session")
def starter() -> Path:
    """The folder of the real starter model, downloaded if it is not in the cache yet."""
    return resolve("starter", cache=CACHE)


@pytest.fixture(scope="session")
def qwen2_starter(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter's weights as a Qwen2 checkpoint: the only difference are biases, which are zero."""
    folder = tmp_path_factory.mktemp("qwen2-starter")
    _copy(starter, folder, (*TOKENIZER_FILES, "generation_config.json"))
    config = json.loads((starter / "config.json").read_text())
    write_config(folder, config | {"model_type": "qwen2"})
    weights = load_file(starter / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):
        for name in "qkv":
            module = f"model.layers.{layer}.self_attn.{name}_proj"
            rows = weights[f"{module}.weight"].shape[0]
            weights[f"{module}.bias"] = np.zeros(rows, np.float16)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_model(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 network of two layers with the starter's tokenizer, which has Qwen's tokens for filling in the
    middle instead of some of its own, and a chat template that shows tools."""
    folder = tmp_path_factory.mktemp("tiny-model")
    _copy(starter, folder, TOKENIZER_FILES)
    rename_tokens(folder, QWEN_TOKENS)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TOOL_TEMPLATE}))
    original = json.loads((starter / "config.json").read_text())
    config = tiny_config("qwen2", original["vocab_size"]) | {"eos_token_id": original["eos_token_id"]}
    write_model(folder, config, random_weights(config))
    return folder


QWEN_TOKENS = {
    "<jupyter_start>": "<|fim_prefix|>",
    "<jupyter_text>": "<|fim_middle|>",
    "<jupyter_code>": "<|fim_suffix|>",
    "<jupyter_output>": "<|fim_pad|>",
    "<repo_name>": "<|repo_name|>",
    "<file_sep>": "<|file_sep|>",
}
"""Special tokens of the starter's, and the names that Qwen has for such ones."""


def rename_tokens(folder: Path, names: Mapping[str, str]) -> None:
    """Give special tokens of a folder's tokenizer other names, and call them special no more, as Qwen has it."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "special": False}
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {names.get(name, name): token for name, token in vocabulary.items()}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.fixture(scope="session")
def vision_model(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network that reads images, with the starter's tokenizer and a template that places them."""
    from vision_models import write_vision_model

    return write_vision_model(starter, tmp_path_factory.mktemp("vision-model"))


@pytest.fixture(scope="session")
def tiny_embedder(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network with all that Qwen3-Embedding-8B's files say: no prefixes, no head, and what to pool."""
    folder = tmp_path_factory.mktemp("embedder") / "Qwen3-Embedding-tiny"
    write_embedder(starter, folder)
    return folder


def write_embedder(starter: Path, folder: Path) -> None:
    """A Qwen3-Embedding checkpoint with the starter's tokenizer."""
    folder.mkdir()
    _copy(starter, folder, TOKENIZER_FILES)
    end_texts(folder)
    vocabulary = json.loads((starter / "config.json").read_text())["vocab_size"]
    config = tiny_config("qwen3", vocabulary)
    weights = {name.removeprefix("model."): weight for name, weight in random_weights(config).items()}
    write_model(folder, config | {"tie_word_embeddings": False, "eos_token_id": 0}, weights)
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}",
        }
        for index, path in enumerate(("", "1_Pooling", "2_Normalize"))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": TINY["hidden_size"], "include_prompt": True}
    modes = {
        f"pooling_mode_{mode}": mode == "lasttoken" for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | modes))


def end_texts(folder: Path, end: str = "<|endoftext|>") -> None:
    """Let the tokenizer in ``folder`` put ``end`` behind each text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))])
    tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    tokenizer.save(str(folder / "tokenizer.json"))


def tiny_config(architecture: str, vocabulary: int, **changes: Any) -> dict[str, Any]:
    """The config.json of a small network."""
    return {
        "model_type": architecture,
        **TINY,
        "num_key_value_heads": 2,
        "head_dim": TINY["hidden_size"] // TINY["num_attention_heads"],
        "vocab_size": vocabulary,
        "max_position_embeddings": TINY_CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        **changes,
    }


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights of a llama, qwen2 or qwen3 network, under Hugging Face's names."""
    random = np.random.default_rng(seed)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden), "self_attn.v_proj": (key, hidden)}
    shapes |= {"self_attn.o_proj": (hidden, query), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
    shapes |= {"mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    if config["model_type"] == "qwen3":
        shapes |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    named = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        named["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        named |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
        if config["model_type"] == "qwen2":
            named |= {f"model.layers.{layer}.self_attn.{n}_proj.bias": (query if n == "q" else key,) for n in "qkv"}
    return {name: _random(random, name, shape) for name, shape in named.items()}


def _random(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a size that keeps activations near one; a dummy network that is not dull."""
    if "norm" in name:
        return random.normal(1, 0.1, shape).astype(np.float32)
    return random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)


def write_model(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    """A checkpoint without tokenizer."""
    write_config(folder, config)
    save_file(weights, folder / "model.safetensors")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """``config.json``."""
    (folder / "config.json").write_text(json.dumps(config))


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.copy(source / name, target / name)
