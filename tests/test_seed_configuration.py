"""Qwen2.5-Coder-32B-Instruct at 4 bits with a context of 32k, as its preset has it, from the download to an answer.

A random network stands in for the weights: the same architecture and proportions (40 heads for 8 of keys and values, a
head and an MLP as wide beside the rest, an output of its own), an eighth or less of each dimension.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import openai
import pytest
from openai import OpenAI

import hub_server
from hub_server import FakeHub
from jackfield.models import catalogue
from jackfield.settings import PRESETS
from model_fixtures import TOOL_TEMPLATE, random_weights, write_config
from serving import DEFAULTS, Server, serve

SEED = "qwen2.5-coder-32b"
ORIGINAL, QUANTIZED = "Qwen/Qwen2.5-Coder-32B-Instruct", str(PRESETS[SEED]["model"])
SCALE = 16
CONTEXT = 32_768
PROMPT_TOKENS = int(os.environ.get("SEED_PROMPT_TOKENS", "3000"))
"""What is really read: all of the context takes minutes on a CPU (`make test-seed`)."""


def scaled(vocabulary: int) -> dict[str, Any]:
    """The config.json of the stand-in."""
    original = catalogue.config_for(ORIGINAL)
    assert original is not None
    config = original | {name: original[name] // SCALE for name in ("hidden_size", "intermediate_size")}
    config |= {name: original[name] // 8 for name in ("num_attention_heads", "num_key_value_heads")}
    return config | {"num_hidden_layers": 2, "vocab_size": vocabulary, "head_dim": 64, "torch_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def hub(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """The Hub with the unquantized stand-in."""
    folder = tmp_path_factory.mktemp("stand-in")
    config = scaled(json.loads((starter / "config.json").read_text())["vocab_size"])
    write_config(folder, config | {"eos_token_id": 2})
    weights = {name: mx.array(weight).astype(mx.bfloat16) for name, weight in random_weights(config).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "tokenizer.json").write_bytes((starter / "tokenizer.json").read_bytes())
    settings = json.loads((starter / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TOOL_TEMPLATE}))
    with hub_server.serve(FakeHub({ORIGINAL: files(folder)})) as server:
        yield server


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def machine(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A machine with empty caches."""
    home = tmp_path_factory.mktemp("home")
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "JACKFIELD_CACHE_DIR": str(home / "jackfield")}


def models(machine: dict[str, str], *arguments: str) -> str:
    """Run ``jackfield models``."""
    command = [sys.executable, "-m", "jackfield", "models", *arguments]
    environment = {**os.environ, **DEFAULTS, **machine}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def server(hub: FakeHub, machine: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The preset, after all that comes before it, and nothing besides."""
    models(machine, "pull", ORIGINAL)
    hub.downloads.clear()
    out = tmp_path_factory.mktemp("quantized") / "model"
    models(machine, "quantize", ORIGINAL, "--bits", "4", "--out", str(out))
    assert hub.downloads == [], "it was here"
    hub.repositories[QUANTIZED] = files(out)
    environment = machine | {"JACKFIELD_PRESET": SEED}
    with serve(QUANTIZED, **environment) as running:
        yield running


def test_the_stand_in_is_quantized_as_the_original_is(hub: FakeHub, server: Server) -> None:
    made = hub.repositories[QUANTIZED]
    config = json.loads(made["config.json"])
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (4, 64)
    whole, small = (
        sum(len(data) for name, data in hub.repositories[repository].items() if name.endswith(".safetensors"))
        for repository in (ORIGINAL, QUANTIZED)
    )
    # 4 bits, and a scale and a bias of 16 bits for each 64, where there were 16 bits.
    assert small / whole == pytest.approx((4 + 2 * 16 / 64) / 16, rel=0.01)


def test_the_presets_settings_are_what_is_served(server: Server) -> None:
    log = "".join(server.log)
    assert "at 8 bits" in log
    assert "Context 32,768 tokens" in log
    assert server.model == QUANTIZED


def test_a_long_prompt_is_read_and_answered(server: Server) -> None:
    client = OpenAI(base_url=server.api, api_key="none", max_retries=0, timeout=900)
    text = " ".join(f"line {number}: return value_{number}" for number in range(CONTEXT // 4))
    ids = tokenize(client, text)[: PROMPT_TOKENS - 16]
    answer = client.completions.create(model=QUANTIZED, prompt=ids, max_tokens=16, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_what_is_longer_than_the_context_is_refused(server: Server) -> None:
    client = OpenAI(base_url=server.api, api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=QUANTIZED, prompt=[5] * (CONTEXT + 1), max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


def tokenize(client: OpenAI, text: str) -> list[int]:
    answer = client.post("/tokenize", body={"model": QUANTIZED, "prompt": text}, cast_to=object)
    assert isinstance(answer, dict)
    tokens: list[int] = answer["tokens"]
    return tokens
