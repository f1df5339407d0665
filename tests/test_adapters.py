"""LoRA and DoRA adapters: each request its own, in one batch, and every answer as mlx-lm's own adapters give it."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3_moe
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from openai import APIStatusError, OpenAI
from safetensors.numpy import save_file

import hub_server
from jackfield.errors import ModelLoadError
from jackfield.models import adapter_file
from jackfield.models.adapter_experts import gathered
from jackfield.models.adapter_file import Change, read_adapter
from jackfield.models.adapters import install
from jackfield.models.device import Device
from jackfield.models.loading import load_network
from jackfield.models.tokenizer import Tokenizer
from logits import same_logits
from model_fixtures import tiny_config, write_config
from serving import Server
from serving import serve_measured as serve

WORDS = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so every day. " * 6
MORE_WORDS = WORDS * 4
QUESTION: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}}
PEFT = "adapter_model.safetensors"
LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")

EXPERTS, ACTIVE, INNER = 8, 4, 32
"""Of the network with experts, and the outputs of each one's gate."""
BLOCK = "model.layers.1.mlp.switch_mlp"

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


def magnitudes(model: Path, seed: int) -> Arrays:
    """DoRA's, for all layers."""
    random = np.random.default_rng(seed)
    lengths = {layer: random.uniform(0.5, 1.5, outputs) for layer, (_, outputs) in shapes(model).items()}
    return {f"model.layers.1.{layer}.m": length.astype(np.float32) for layer, length in lengths.items()}


def expert_halves(seed: int, rank: int, hidden: int = 64) -> Arrays:
    """Of all layers of the second block's experts, as mlx-lm has them."""
    random = np.random.default_rng(seed)
    found: Arrays = {}
    for part in ("gate_proj", "up_proj", "down_proj"):
        inputs, outputs = (INNER, hidden) if part == "down_proj" else (hidden, INNER)
        # One matrix for both, as PEFT has it.
        seed_of_down = seed if part != "down_proj" else seed + 1
        down = np.random.default_rng(seed_of_down).normal(0, 0.3, (EXPERTS, rank, inputs))
        found[f"{BLOCK}.{part}.lora_a"] = down.astype(np.float32)
        found[f"{BLOCK}.{part}.lora_b"] = random.normal(0, 0.3, (EXPERTS, outputs, rank)).astype(np.float32)
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
    """The same in PEFT's form, or arrays that have its names already."""
    folder.mkdir()
    save_file({_peft_name(name): np.ascontiguousarray(array.T) for name, array in arrays.items()}, folder / PEFT)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def _peft_name(name: str) -> str:
    layer, _, part = name.rpartition(".")
    part = "lora_magnitude_vector" if part == "m" else f"lora_{part[-1].upper()}.weight"
    return f"base_model.model.{layer}.{part}"


@pytest.fixture(scope="module")
def experts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network with experts."""
    folder = tmp_path_factory.mktemp("models") / "experts"
    shutil.copytree(tiny_model, folder)
    original = json.loads((tiny_model / "config.json").read_text())
    sizes = {"num_experts": EXPERTS, "num_experts_per_tok": ACTIVE, "moe_intermediate_size": INNER}
    sizes |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    config = tiny_config("qwen3_moe", original["vocab_size"], **sizes) | {"eos_token_id": original["eos_token_id"]}
    mx.random.seed(3)
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(config))
    write_config(folder, config)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of different kinds and ranks; two of them in PEFT's format too."""
    folder = tmp_path_factory.mktemp("adapters")
    write_mlx(folder / "sql", halves(tiny_model, 1, 4), 4)
    second = halves(tiny_model, 2, 8, LAYERS[:2])
    write_mlx(folder / "poems", second, 8)
    write_peft(folder / "peft", second, r=8, lora_alpha=16)
    third = halves(tiny_model, 3, 4) | magnitudes(tiny_model, 4)
    write_mlx(folder / "dora", third, 4, fine_tune_type="dora")
    write_peft(folder / "peft-dora", third, r=4, lora_alpha=8, use_dora=True)
    write_mlx(folder / "law", expert_halves(5, 4), 4)
    attention = {name: array for name, array in halves(tiny_model, 6, 2).items() if "q_proj" in name}
    write_mlx(folder / "tax", expert_halves(7, 2) | attention, 2)
    return folder


MODELS = {"tiny": ("sql", "poems", "dora"), "experts": ("law", "tax")}
"""And the adapters of each."""


def answer(model: nn.Module, tokens: list[int]) -> list[int]:
    """The likeliest tokens."""
    cache, said = make_prompt_cache(model), []
    while len(said) < QUESTION["max_tokens"]:
        logits = model(mx.array([said[-1:] or tokens]), cache=cache)
        said.append(int(mx.argmax(logits[0, -1]).item()))
    return said


@pytest.fixture(scope="module")
def expected(tiny_model: Path, experts: Path, folder: Path, device: Device) -> dict[str, list[str]]:
    """What mlx-lm says with each to both prompts, one token after the other."""
    tokenizer = Tokenizer(tiny_model)
    said = {}
    for source, (base, names) in zip((tiny_model, experts), MODELS.items(), strict=True):
        for name in (base, *names):
            model = load_network(source, device).model
            if name != base:
                load_adapters(model, str(folder / name))
            said[name] = [tokenizer.decode(answer(model, tokenizer.encode(prompt))) for prompt in (WORDS, MORE_WORDS)]
    return said | {"peft": said["poems"], "peft-dora": said["dora"]}


@pytest.fixture(scope="module")
def server(tiny_model: Path, experts: Path, folder: Path) -> Iterator[Server]:
    """Two models with adapters, of which one is on a Hub."""
    file = folder / "jackfield.toml"
    lines = ['model = "tiny"']
    for source, (base, names) in zip((tiny_model, experts), MODELS.items(), strict=True):
        also = ("peft", "peft-dora") if base == "tiny" else ()
        lines += [f"[models.{base}]", f'source = "{source}"', 'route = ["mlx"]', f"[models.{base}.adapters]"]
        lines += [f'{name} = "{"acme/law" if name == "law" else folder / name}"' for name in (*names, *also)]
    file.write_text("\n".join(lines))
    files = {path.name: path.read_bytes() for path in (folder / "law").iterdir()} | {"README.md": b"Law."}
    with hub_server.serve(hub_server.FakeHub({"acme/law": files})) as hub:
        places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_CACHE": str(folder / "hf" / "hub")}
        with serve("tiny", "--config", str(file), "--alias", "gpt-4o=poems", **places) as server:
            yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        yield client


def says(client: OpenAI, name: str, prompt: str = WORDS) -> str:
    return client.completions.create(model=name, prompt=prompt, **QUESTION).choices[0].text


def test_they_answer_as_mlx_lm_has_them(client: OpenAI, expected: dict[str, list[str]]) -> None:
    assert len(set(map(tuple, expected.values()))) == len(expected) - 2, "all differ, but for those of PEFT's"
    assert {name: says(client, name) for name in expected} == {name: said for name, (said, _) in expected.items()}


@pytest.mark.parametrize("base", MODELS)
def test_all_at_the_same_time(client: OpenAI, expected: dict[str, list[str]], base: str) -> None:
    """In one batch, whose prompts are read between and in the others' steps, and whose rows differ in length."""
    names = [base, *MODELS[base], *(("peft", "peft-dora") if base == "tiny" else ())]
    asked = [(name, longer) for name in names for longer in (0, 1)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: says(client, one[0], (WORDS, MORE_WORDS)[one[1]]), asked))
    assert answers == [expected[name][longer] for name, longer in asked]


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
    tiny = dict.fromkeys(("sql", "poems", "dora", "peft", "peft-dora"), "tiny")
    assert listed == {"tiny": None, "experts": None, "law": "experts", "tax": "experts"} | tiny
    assert httpx2.get(f"{server.api}/models/sql").json()["id"] == "sql"


def test_another_name_of_one_means_it_and_not_its_model(
    client: OpenAI, server: Server, expected: dict[str, list[str]]
) -> None:
    assert says(client, "gpt-4o") == expected["poems"][0]
    listed = {model["id"]: model["jackfield"] for model in httpx2.get(f"{server.api}/models").json()["data"]}
    assert {name: one["aliases"] for name, one in listed.items() if one["aliases"]} == {"poems": ["gpt-4o"]}
    assert httpx2.get(f"{server.api}/models/gpt-4o").json()["id"] == "poems"
    assert "embeddings" in listed["tiny"]["capabilities"]
    assert "embeddings" not in listed["poems"]["capabilities"], "an adapter makes none"


@pytest.mark.parametrize(("name", "goes_along_it"), [("tiny", True), ("poems", False), ("gpt-4o", False)])
def test_the_route_of_their_model_is_not_theirs(client: OpenAI, name: str, goes_along_it: bool) -> None:
    answer = client.completions.create(model=name, prompt="Hi", max_tokens=1, extra_body={"jackfield": True})
    assert ("attempts" in answer.model_dump()["jackfield"]) == goes_along_it


def test_answers_carry_their_names(client: OpenAI) -> None:
    assert client.completions.create(model="sql", prompt="Hi", **QUESTION).model == "sql"


def test_there_are_no_vectors_of_one(client: OpenAI) -> None:
    with pytest.raises(APIStatusError, match="it is an adapter; ask"):
        client.embeddings.create(model="sql", input="Hi")


def quantized(model: nn.Module) -> nn.Module:
    nn.quantize(model, group_size=32, bits=4)
    return model


@pytest.mark.parametrize("name", ["sql", "dora", "law"])
def test_quantized_layers_have_them_too(
    folder: Path, device: Device, name: str, request: pytest.FixtureRequest
) -> None:
    source, other = ("experts", "tax") if name == "law" else ("tiny_model", "poems")
    model: Path = request.getfixturevalue(source)
    tokens = mx.array([[5, 6, 7, 8]])
    theirs = quantized(load_network(model, device).model)
    load_adapters(theirs, str(folder / name))
    ours = quantized(load_network(model, device).model)
    plain = ours(tokens)
    adapters, named = install(ours, [read_adapter(one, folder / one) for one in (other, name)])
    with adapters.applied(adapters.chosen([named[name].index])):
        answered = ours(tokens)
    assert mx.allclose(answered, theirs(tokens), rtol=1e-4, atol=1e-4).item()
    assert not mx.allclose(answered, plain, rtol=1e-2, atol=1e-2).item()
    assert same_logits(ours(tokens), plain)
    # So many rows that experts sort their tokens.
    chosen = [None, named[name].index, named[other].index, None, named[name].index]
    with adapters.applied(adapters.chosen(chosen)):
        rows = ours(mx.concatenate([tokens] * len(chosen)))
    for index in (1, 4):
        assert mx.allclose(rows[index : index + 1], answered, rtol=1e-4, atol=1e-4).item()
    for index in (0, 3):
        assert mx.allclose(rows[index : index + 1], plain, rtol=1e-4, atol=1e-4).item()
    assert not mx.allclose(rows[2], answered[0], rtol=1e-2, atol=1e-2).item()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"fine_tune_type": "dora"}, "no magnitude"),
        ({"fine_tune_type": "full"}, "'full'"),
        ({"peft_type": "LOHA", "fine_tune_type": None}, "'LOHA'"),
        ({"lora_parameters": {"rank": 4}}, "scale"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "the model's own weights"),
    ],
    ids=str,
)
def test_other_kinds_are_refused(tiny_model: Path, tmp_path: Path, config: dict[str, Any], told: str) -> None:
    folder = write_mlx(tmp_path / "odd", halves(tiny_model, 1, 4), 4, **config)
    with pytest.raises(ModelLoadError, match=told):
        read_adapter("odd", folder)


def read_peft(folder: Path, arrays: Arrays, **config: Any) -> dict[str, Change]:
    return dict(read_adapter("a", write_peft(folder, arrays, **({"r": 4, "lora_alpha": 8} | config))).layers)


def test_magnitudes_that_do_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    arrays = halves(tiny_model, 1, 4) | magnitudes(tiny_model, 4)
    with pytest.raises(ModelLoadError, match="a magnitude"):
        read_peft(tmp_path / "lora", arrays)
    short = arrays | {f"model.layers.1.{LAYERS[0]}.m": np.ones(3, np.float32)}
    with pytest.raises(ModelLoadError, match="3 magnitudes for 64 outputs"):
        read_peft(tmp_path / "short", short, use_dora=True)


def test_rank_stabilised_ones_have_another_scale(tiny_model: Path, tmp_path: Path) -> None:
    arrays = halves(tiny_model, 1, 4)
    plain = read_adapter("a", write_peft(tmp_path / "a", arrays, r=4, lora_alpha=8))
    stable = read_adapter("b", write_peft(tmp_path / "b", arrays, r=4, lora_alpha=8, use_rslora=True))
    layer = f"model.layers.1.{LAYERS[0]}"
    assert mx.allclose(plain.layers[layer].up * 2, stable.layers[layer].up).item()
    assert plain.digest != stable.digest


def test_ranks_and_scales_may_differ_by_layer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = halves(tiny_model, 1, 4)
    plain = read_peft(tmp_path / "plain", arrays)
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\..*": 24, "down_proj": 1}}
    differing = read_peft(tmp_path / "differing", arrays, **patterns)
    factors = [float((differing[name].up / plain[name].up).mean()) for name in (f"model.layers.1.{n}" for n in LAYERS)]
    assert factors == pytest.approx([2, 1, 3])
    monkeypatch.setattr(adapter_file, "PATTERN_SECONDS", 0.05)
    for name, pattern in (("endless", r"(.+)(.+)(.+)(.+)(.+)(.+)(.+)\3\4\5\6\7"), ("broken", "(")):
        with pytest.raises(ModelLoadError, match="cannot be used"):
            read_peft(tmp_path / name, arrays, rank_pattern={pattern: 2})


def changes(layers: dict[str, Change]) -> dict[str, mx.array]:
    """What is added to each layer's weights [experts, outputs, inputs]."""
    return {name: (one.down @ one.up).swapaxes(-1, -2) for name, one in layers.items()}


def test_experts_of_pefts_are_those_of_mlx_lms(experts: Path, folder: Path, tmp_path: Path, device: Device) -> None:
    arrays = expert_halves(5, 4)
    modules = dict(load_network(experts, device).model.named_modules())
    expected = changes(dict(read_adapter("law", folder / "law").layers))
    single = {
        f"{BLOCK.replace('switch_mlp', f'experts.{expert}')}.{part}.lora_{half}": array.T
        for part in ("gate_proj", "up_proj", "down_proj")
        for half in "ab"
        for expert, array in enumerate(arrays[f"{BLOCK}.{part}.lora_{half}"])
        if expert != 3
    }
    found = changes(gathered(read_peft(tmp_path / "single", single), modules))
    assert found.keys() == expected.keys()
    for name, change in found.items():
        assert mx.allclose(change[:3], expected[name][:3], atol=1e-6).item()
        assert mx.allclose(change[4:], expected[name][4:], atol=1e-6).item()
        assert not change[3].any().item(), "the fourth expert stays as it is"


def test_parameters_of_experts_are_taken_apart(experts: Path, tmp_path: Path, device: Device) -> None:
    """As PEFT's own formula has it: "o r e, e r i -> e o i"."""
    modules = dict(load_network(experts, device).model.named_modules())
    random, block = np.random.default_rng(9), BLOCK.replace("switch_mlp", "experts")
    sizes = {f"{block}.base_layer": (64, 2 * INNER), block: (INNER, 64)}
    arrays, expected = {}, {}
    for name, (inputs, outputs) in sizes.items():
        a = random.normal(0, 1, (EXPERTS * 4, inputs)).astype(np.float32)
        b = random.normal(0, 1, (outputs, 4 * EXPERTS)).astype(np.float32)
        arrays |= {f"{name}.lora_a": a.T, f"{name}.lora_b": b.T}
        formula = "ore,eri->eoi"
        expected[name] = 2 * np.einsum(formula, b.reshape(outputs, 4, EXPERTS), a.reshape(EXPERTS, 4, inputs))
    config = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    found = changes(gathered(read_peft(tmp_path / "fused", arrays, **config), modules))
    both = mx.concatenate([found[f"{BLOCK}.gate_proj"], found[f"{BLOCK}.up_proj"]], axis=1)
    assert np.allclose(both, expected[f"{block}.base_layer"], atol=1e-4)
    assert np.allclose(found[f"{BLOCK}.down_proj"], expected[block], atol=1e-4)
    alone = {name: array for name, array in arrays.items() if "base_layer" not in name}
    found = changes(gathered(read_peft(tmp_path / "down", alone, target_parameters=["experts.down_proj"]), modules))
    assert np.allclose(found[f"{BLOCK}.down_proj"], expected[block], atol=1e-4)


@pytest.mark.parametrize(
    ("arrays", "config", "told"),
    [
        ({"8.gate_proj": (64, INNER)}, {}, "8 experts"),
        ({"0.gate_proj": (32, INNER)}, {}, "the adapter maps 32 to 32 values in 8 experts"),
        ({"": (INNER, 64)}, {"target_parameters": ["down_proj"]}, "8 experts, and the adapter has 4 columns"),
    ],
)
def test_experts_that_do_not_fit(
    experts: Path, tmp_path: Path, *, device: Device, arrays: dict[str, tuple[int, int]], config: Any, told: str
) -> None:
    block = BLOCK.replace("switch_mlp", "experts")
    named = {
        f"{block}.{name}".rstrip(".") + f".lora_{half}": np.ones(shape, np.float32)
        for name, (inputs, outputs) in arrays.items()
        for half, shape in (("a", (inputs, 4)), ("b", (4, outputs)))
    }
    file = read_adapter("a", write_peft(tmp_path / "a", named, r=4, lora_alpha=8, **config))
    with pytest.raises(ModelLoadError, match=told):
        install(load_network(experts, device).model, [file])


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
