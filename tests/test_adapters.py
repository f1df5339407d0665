"""LoRA adapters: each request its own, in one batch, and every answer as mlx-lm's own adapters give it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.tuner.utils import load_adapters
from openai import APIStatusError, OpenAI
from safetensors.numpy import save_file

from jackfield.errors import ModelLoadError
from jackfield.models.adapters import install, read_adapter
from jackfield.models.device import Device
from jackfield.models.loading import load_network
from jackfield.models.tokenizer import Tokenizer
from serving import Server, serve

WORDS = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so every day. " * 6
QUESTION: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}}
LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")

Arrays = dict[str, np.ndarray]


def shapes(model: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the layers that adapters change."""
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    values = config["num_key_value_heads"] * config.get("head_dim", hidden // heads)
    sizes = {"self_attn.q_proj": (hidden, hidden), "self_attn.v_proj": (hidden, values)}
    return sizes | {"mlp.down_proj": (config["intermediate_size"], hidden)}


def halves(model: Path, seed: int, rank: int, layers: tuple[str, ...] = LAYERS) -> Arrays:
    """Random ones that make a difference, as mlx-lm names them."""
    random = np.random.default_rng(seed)
    found: Arrays = {}
    for layer in layers:
        inputs, outputs = shapes(model)[layer]
        found[f"model.layers.1.{layer}.lora_a"] = random.normal(0, 0.3, (inputs, rank)).astype(np.float32)
        found[f"model.layers.1.{layer}.lora_b"] = random.normal(0, 0.3, (rank, outputs)).astype(np.float32)
    return found


def write_mlx(folder: Path, arrays: Arrays, rank: int, scale: float = 2.0, **config: Any) -> Path:
    folder.mkdir()
    save_file(arrays, folder / "adapters.safetensors")
    keys = sorted({name.split(".", 3)[3].rsplit(".", 1)[0] for name in arrays})
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    document = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters} | config
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def write_peft(folder: Path, arrays: Arrays, **config: Any) -> Path:
    folder.mkdir()
    renamed = {
        f"base_model.model.{name[:-1]}{name[-1].upper()}.weight": np.ascontiguousarray(array.T)
        for name, array in arrays.items()
    }
    save_file(renamed, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of different ranks; the second one in PEFT's format too."""
    folder = tmp_path_factory.mktemp("adapters")
    write_mlx(folder / "sql", halves(tiny_model, 1, 4), 4)
    second = halves(tiny_model, 2, 8, LAYERS[:2])
    write_mlx(folder / "poems", second, 8)
    write_peft(folder / "peft", second, r=8, lora_alpha=16)
    return folder


@pytest.fixture(scope="module")
def expected(tiny_model: Path, folder: Path, device: Device) -> dict[str, str]:
    """What mlx-lm says with each, one token after the other."""
    tokenizer = Tokenizer(tiny_model)
    said = {}
    for name in ("base", "sql", "poems"):
        model = load_network(tiny_model, device).model
        if name != "base":
            load_adapters(model, str(folder / name))
        tokens = tokenizer.encode(WORDS)
        for _ in range(QUESTION["max_tokens"]):
            tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
        said[name] = tokenizer.decode(tokens[-QUESTION["max_tokens"] :])
    return said


@pytest.fixture(scope="module")
def server(tiny_model: Path, folder: Path) -> Iterator[Server]:
    flags = [word for name in ("sql", "poems", "peft") for word in ("--adapter", f"{name}={folder / name}")]
    with serve(tiny_model, *flags, "--alias", "gpt-4o=poems") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        yield client


def says(client: OpenAI, name: str, prompt: str = WORDS) -> str:
    return client.completions.create(model=name, prompt=prompt, **QUESTION).choices[0].text


def test_they_answer_as_mlx_lm_has_them(client: OpenAI, server: Server, expected: dict[str, str]) -> None:
    assert len(set(expected.values())) == 3
    assert says(client, server.model) == expected["base"]
    assert says(client, "sql") == expected["sql"]
    assert says(client, "poems") == expected["poems"]
    assert says(client, "peft") == expected["poems"]


def test_all_at_the_same_time(client: OpenAI, server: Server, expected: dict[str, str]) -> None:
    """In one batch, whose prompts are read between and in the others' steps."""
    names = {server.model: "base", "sql": "sql", "poems": "poems", "peft": "poems"}
    asked = list(names) * 4
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda name: says(client, name), asked))
    assert answers == [expected[names[name]] for name in asked]


def test_what_one_has_read_is_not_taken_for_what_another_one_would(client: OpenAI, server: Server) -> None:
    prompt = f"Never asked before. {WORDS}"

    def cached(name: str) -> int:
        answer = client.completions.create(model=name, prompt=prompt, **QUESTION)
        assert answer.usage and answer.usage.prompt_tokens_details
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert [cached(name) for name in (server.model, "sql", "poems")] == [0, 0, 0]
    assert all(cached(name) for name in (server.model, "sql", "poems"))


def test_they_are_listed_with_their_model(server: Server) -> None:
    listed = {model["id"]: model.get("parent") for model in httpx2.get(f"{server.api}/models").json()["data"]}
    assert listed == {server.model: None, "sql": server.model, "poems": server.model, "peft": server.model}
    assert httpx2.get(f"{server.api}/models/sql").json()["id"] == "sql"


def test_answers_carry_their_names(client: OpenAI) -> None:
    assert client.completions.create(model="sql", prompt="Hi", **QUESTION).model == "sql"


def test_there_are_no_vectors_of_one(client: OpenAI) -> None:
    with pytest.raises(APIStatusError, match="it is an adapter; ask"):
        client.embeddings.create(model="sql", input="Hi")


def quantized(model: nn.Module) -> nn.Module:
    nn.quantize(model, group_size=32, bits=4)
    return model


@pytest.mark.parametrize("change", [lambda model: model, quantized], ids=["plain", "quantized"])
def test_quantized_layers_have_them_too(
    tiny_model: Path, folder: Path, device: Device, change: Callable[[nn.Module], nn.Module]
) -> None:
    tokens = mx.array([[5, 6, 7, 8]])
    theirs = change(load_network(tiny_model, device).model)
    load_adapters(theirs, str(folder / "sql"))
    ours = change(load_network(tiny_model, device).model)
    plain = ours(tokens)
    adapters, named = install(ours, [read_adapter(name, folder / name) for name in ("poems", "sql")])
    with adapters.applied(adapters.mask([named["sql"].index])):
        answered = ours(tokens)
    assert mx.allclose(answered, theirs(tokens), rtol=1e-4, atol=1e-4).item()
    assert not mx.allclose(answered, plain, rtol=1e-2, atol=1e-2).item()
    assert mx.array_equal(ours(tokens), plain).item()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"fine_tune_type": "dora"}, "'dora'"),
        ({"lora_parameters": {"rank": 4}}, "scale"),
        ({"use_dora": True}, "DoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "differ by layer"),
    ],
    ids=str,
)
def test_other_kinds_are_refused(tiny_model: Path, tmp_path: Path, config: dict[str, Any], told: str) -> None:
    folder = write_mlx(tmp_path / "odd", halves(tiny_model, 1, 4), 4, **config)
    with pytest.raises(ModelLoadError, match=told):
        read_adapter("odd", folder)


def test_rank_stabilised_ones_have_another_scale(tiny_model: Path, tmp_path: Path) -> None:
    arrays = halves(tiny_model, 1, 4)
    plain = read_adapter("a", write_peft(tmp_path / "a", arrays, r=4, lora_alpha=8))
    stable = read_adapter("b", write_peft(tmp_path / "b", arrays, r=4, lora_alpha=8, use_rslora=True))
    layer = f"model.layers.1.{LAYERS[0]}"
    assert mx.allclose(plain.layers[layer][1] * 2, stable.layers[layer][1]).item()
    assert plain.digest != stable.digest


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="There is no adapter"):
        read_adapter("nothing", tmp_path)


def test_what_was_made_for_another_model(tiny_model: Path, tmp_path: Path, device: Device) -> None:
    arrays = {name: array[:, :-1] if name.endswith("b") else array for name, array in halves(tiny_model, 1, 4).items()}
    file = read_adapter("other", write_mlx(tmp_path / "other", arrays, 4))
    with pytest.raises(ModelLoadError, match="made for another model"):
        install(load_network(tiny_model, device).model, [file])
    renamed = {name.replace("layers.1", "layers.9"): array for name, array in halves(tiny_model, 1, 4).items()}
    file = read_adapter("deeper", write_mlx(tmp_path / "deeper", renamed, 4))
    with pytest.raises(ModelLoadError, match="no linear layer of this model"):
        install(load_network(tiny_model, device).model, [file])


def test_halves_that_do_not_fit_together(tiny_model: Path, tmp_path: Path) -> None:
    arrays = halves(tiny_model, 1, 4)
    del arrays[f"model.layers.1.{LAYERS[0]}.lora_b"]
    with pytest.raises(ModelLoadError, match="do not fit together"):
        read_adapter("half", write_mlx(tmp_path / "half", arrays, 4))
