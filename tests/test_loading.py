"""From a folder to a network in memory: types, lengths, and what cannot be loaded."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.utils import load_model
from safetensors.numpy import load_file, save_file

from jackfield.errors import ModelLoadError
from jackfield.events import EventBus
from jackfield.models import loading, service
from jackfield.models.architecture import from_folder
from jackfield.models.device import REFERENCE, Device
from jackfield.models.headless import tensor_names
from jackfield.models.loading import context_length, float32_bytes, load_network
from jackfield.models.memory import Memory
from jackfield.models.tokenizer import Tokenizer
from jackfield.settings import Settings
from logits import same_logits
from model_fixtures import random_weights, tiny_config, write_config, write_model

PROMPT = mx.array([[3, 1, 4, 1, 5]])
CPU = Device("cpu", "test", 2**40, REFERENCE)
GPU = Device("metal", "test", 2**40, REFERENCE)


def checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    """A random checkpoint with a tokenizer file, so that it is whole."""
    write_model(folder, config, random_weights(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return checkpoint(tmp_path, tiny_config("qwen3", 64))


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """4 bits, embeddings 8, in bfloat16, as mlx_lm.convert makes them."""
    config = tiny_config("llama", 64, tie_word_embeddings=False)
    model, _ = load_model(checkpoint(tmp_path, config))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, 64, 4, class_predicate=lambda path, layer: isinstance(layer, nn.Linear))
    nn.quantize(model.model, 64, 8, class_predicate=lambda path, layer: isinstance(layer, nn.Embedding))
    widths = {"group_size": 64, "bits": 4, "model.embed_tokens": {"group_size": 64, "bits": 8}}
    model.save_weights(str(tmp_path / "model.safetensors"))
    write_config(tmp_path, config | {"quantization": widths})
    return tmp_path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the quantized weights, not for float32."""
    monkeypatch.setattr(loading, "host_memory", lambda: Memory(2**30, 2**30))


def types(model: nn.Module) -> set[str]:
    return {str(array.dtype) for _, array in loading._arrays(model)}


# Types


@pytest.mark.parametrize("kind", ["default", "linear"])
def test_what_transformers_5_calls_otherwise_is_understood(plain: Path, kind: str) -> None:
    config = json.loads((plain / "config.json").read_text())
    scaling = {} if kind == "default" else {"rope_scaling": {"rope_type": kind, "factor": 4.0}}
    write_config(plain, config | {"rope_theta": 123.0} | scaling)
    expected = load_network(plain, CPU).model(PROMPT)
    del config["rope_theta"]
    factor = {} if kind == "default" else {"factor": 4.0}
    write_config(plain, config | {"rope_parameters": {"rope_theta": 123.0, "rope_type": kind} | factor})
    assert same_logits(load_network(plain, CPU).model(PROMPT), expected)


def test_a_cpu_gets_float32(quantized: Path) -> None:
    network = load_network(quantized, CPU)
    assert network.dtype == "float32"
    assert types(network.model) == {"mlx.core.float32"}
    assert network.nbytes == float32_bytes(network.model)


def test_float32_weights_have_the_quantized_values(quantized: Path) -> None:
    """Scale times value plus bias is computed in 32 bits: with the same values, kept ones give the same logits."""
    expanded = load_network(quantized, CPU, dtype="float32").model(PROMPT)
    kept, _ = load_model(quantized)
    kept.set_dtype(mx.float32)
    assert mx.allclose(expanded, kept(PROMPT), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("little_memory")
def test_a_cpu_with_little_memory_keeps_weights_quantized(quantized: Path) -> None:
    network = load_network(quantized, CPU)
    assert network.dtype == "4-bit"
    assert types(network.model) == {"mlx.core.float32", "mlx.core.uint32"}
    assert network.model(PROMPT).dtype == mx.float32


def test_a_limit_of_ones_own_keeps_weights_quantized_too(quantized: Path) -> None:
    whole = load_network(quantized, CPU).nbytes
    network = load_network(quantized, CPU, memory_limit=whole // 2)
    assert network.dtype == "4-bit"
    assert network.nbytes < whole // 2


def test_float32_is_not_forced_into_memory_that_is_not_there(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (quantized / "model.safetensors").stat().st_size
    monkeypatch.setattr(loading, "host_memory", lambda: Memory(2 * size, 2 * size))
    with pytest.raises(ModelLoadError, match="of memory are available"):
        load_network(quantized, CPU, dtype="float32")


@pytest.mark.usefixtures("little_memory")
def test_plain_weights_that_do_not_fit_as_float32_are_refused(plain: Path) -> None:
    with pytest.raises(ModelLoadError, match="float32") as caught:
        load_network(plain, CPU)
    assert any("quantized" in suggestion for suggestion in caught.value.suggestions)


def test_kept_weights_are_as_in_the_files(quantized: Path) -> None:
    network = load_network(quantized, CPU, dtype="keep")
    assert network.dtype == "4-bit"
    assert types(network.model) == {"mlx.core.bfloat16", "mlx.core.uint32"}


def test_a_gpu_gets_weights_as_they_are(quantized: Path) -> None:
    assert types(load_network(quantized, GPU).model) == {"mlx.core.bfloat16", "mlx.core.uint32"}


def test_a_gpu_gets_one_type_of_activations_from_gguf_files(quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    write_config(quantized, config | {"jackfield": {"source": "gguf"}, "torch_dtype": "float16"})
    assert types(load_network(quantized, GPU).model) == {"mlx.core.float16", "mlx.core.uint32"}


def test_half_precision_files_become_float32_on_a_cpu(plain: Path) -> None:
    weights = load_file(plain / "model.safetensors")
    save_file({name: array.astype(np.float16) for name, array in weights.items()}, plain / "model.safetensors")
    assert types(load_network(plain, CPU).model) == {"mlx.core.float32"}
    assert load_network(plain, GPU).dtype == "float16"


def test_experts_are_expanded_too(tmp_path: Path) -> None:
    from mlx_lm.models.switch_layers import SwitchLinear

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = [SwitchLinear(64, 32, 4, bias=True)]

    model = Model()
    nn.quantize(model, 32, 4)
    before = model.experts[0](mx.ones((1, 1, 1, 64)), mx.array([[2]]))
    loading._to_float32(model, dequantize=True)
    assert isinstance(model.experts[0], SwitchLinear)
    assert mx.allclose(before, model.experts[0](mx.ones((1, 1, 1, 64)), mx.array([[2]])), atol=1e-4)


def test_a_plugin_prepares_the_model_before_its_weights_are_changed(quantized: Path) -> None:
    """A layer of its own keeps what it has: its kernel may read 4-bit weights and 16-bit scales."""
    seen = {}

    class Fast(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.weight, self.scales, self.biases = layer.weight, layer.scales, layer.biases

        def __call__(self, x: mx.array) -> mx.array:
            return mx.quantized_matmul(x, self.weight, self.scales, self.biases, group_size=64, bits=4)

    def prepare(model: Any, config: dict[str, Any], device: Device) -> nn.Module:
        seen.update(type=type(model.lm_head).__name__, model_type=config["model_type"], device=device)
        model.lm_head = Fast(model.lm_head)
        return model

    network = load_network(quantized, CPU, prepare=prepare)
    assert seen == {"type": "QuantizedLinear", "model_type": "llama", "device": CPU}
    head = network.model.lm_head
    assert (head.weight.dtype, head.scales.dtype) == (mx.uint32, mx.bfloat16)
    assert network.model(PROMPT).shape == (1, 5, 64)


# Networks without a head


def headless(folder: Path, *, prefix: str, tied: bool) -> Path:
    """An embedding model's checkpoint: the network alone, whatever config.json says of a head."""
    config = tiny_config("qwen3", 64)
    weights = {prefix + name.removeprefix("model."): weight for name, weight in random_weights(config).items()}
    write_model(folder, config | {"tie_word_embeddings": tied}, weights)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("prefix", ["", "model."], ids=["bare", "prefixed"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_network_without_head_loads_and_runs(
    prefix: str, tied: bool, tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "headless"
    folder.mkdir()
    network = load_network(headless(folder, prefix=prefix, tied=tied), CPU)
    assert mx.allclose(network.model(PROMPT), load_network(plain, CPU).model(PROMPT))
    assert type(network.model).__module__ == "mlx_lm.models.qwen3"
    assert ("what it writes means nothing" in caplog.text) != tied
    assert from_folder(folder).vocabulary == 64


def test_a_head_by_another_name_is_none_that_is_missing(tmp_path: Path) -> None:
    config = tiny_config("qwen3", 64, tie_word_embeddings=False)
    weights = random_weights(config)
    weights["output.weight"] = weights.pop("lm_head.weight")
    write_model(tmp_path, config, weights)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="do not fit its config"):
        load_network(tmp_path, CPU)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x01\0\0\0\0\0\0\0{"], ids=repr)
def test_headers_that_are_none_name_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    assert tensor_names(tmp_path) == set()


# What is known of a network


def test_what_is_known_of_the_tiny_model(tiny_model: Path, device: Device) -> None:
    network = load_network(tiny_model, device)
    assert (network.vocabulary_size, network.context_length) == (49152, 4096)
    assert network.config["model_type"] == "qwen2"
    assert network.model(PROMPT).shape == (1, 5, 49152)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"text_config": {"max_position_embeddings": 4096}, "rope_scaling": None}, 4096),
        ({"n_positions": 1024}, 1024),
        ({}, 2048),
        # Qwen2.5 with the YaRN section that its model card gives
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
            },
            131072,
        ),
        # Qwen3, whose own length counts more than YaRN's
        (
            {
                "max_position_embeddings": 40960,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        # gpt-oss: already extended
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
            },
            131072,
        ),
        # Llama 3.2: the factor is of the frequencies, not of the length
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        # transformers 5
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768},
            },
            65536,
        ),
    ],
)
def test_context_lengths(config: dict[str, Any], length: int) -> None:
    assert context_length(config) == length


# What cannot be loaded


def failure(folder: Path, device: Device = CPU) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        load_network(folder, device)
    assert caught.value.suggestions
    return caught.value


def test_an_unknown_architecture(plain: Path) -> None:
    write_config(plain, {"model_type": "hal9000"})
    assert "hal9000" in failure(plain).message


def test_an_architecture_that_comes_as_code(plain: Path) -> None:
    (plain / "modeling_hal.py").write_text("raise SystemExit('ran')")
    write_config(plain, {"model_type": "hal9000", "auto_map": {"AutoModel": "modeling_hal.Hal"}})
    assert "code of its own" in failure(plain).message


def test_a_model_type_is_no_path(plain: Path) -> None:
    """It names a module of mlx-lm; nothing else may be imported by it."""
    write_config(plain, {"model_type": "..utils"})
    assert "cannot be" in failure(plain).message


def test_a_configuration_that_lacks_something(plain: Path) -> None:
    write_config(plain, {"model_type": "llama", "hidden_size": 64})
    assert "cannot be loaded" in failure(plain).message


@pytest.mark.parametrize("wrong", [{"rope_theta": "x"}, {"rope_theta": {}}, {"max_position_embeddings": "x"}], ids=str)
def test_a_configuration_that_fails_once_the_model_is_used(plain: Path, wrong: dict[str, Any]) -> None:
    write_config(plain, json.loads((plain / "config.json").read_text()) | wrong)
    with pytest.raises(ModelLoadError, match=r"cannot be worked out from its config\.json") as caught:
        from_folder(plain)
    assert caught.value.suggestions


def test_a_tokenizer_without_words(tiny_model: Path, tmp_path: Path) -> None:
    """What transformers makes of a folder that has lost ``tokenizer.json``."""
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((tiny_model / "tokenizer_config.json").read_bytes())
    with pytest.raises(ModelLoadError, match="no words") as caught:
        Tokenizer(tmp_path)
    assert "tokenizer.json" in caught.value.suggestions[0]


def test_weights_of_another_model(plain: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    write_config(plain, config | {"hidden_size": 32})
    assert "do not fit" in failure(plain).message


def test_a_missing_tensor(plain: Path) -> None:
    weights = load_file(plain / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, plain / "model.safetensors")
    assert "Missing 1 parameters" in failure(plain).message


@pytest.mark.parametrize("length", [0, 4, 100, 20_000])
def test_a_weight_file_that_was_cut_off(length: int, plain: Path) -> None:
    data = (plain / "model.safetensors").read_bytes()
    (plain / "model.safetensors").write_bytes(data[:length])
    failure(plain)


def test_a_weight_file_of_garbage(plain: Path) -> None:
    (plain / "model.safetensors").write_bytes(b"\xff" * 1000)
    failure(plain)


@pytest.mark.parametrize("device", [CPU, Device("metal", "test", 1000, REFERENCE)])
def test_a_model_larger_than_the_memory(device: Device, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "host_memory", lambda: Memory(1000, 1000))
    assert "of memory are available" in failure(plain, device).message


def test_what_takes_long_is_not_read_on_the_loop(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of 151k words takes most of a second, in which streams would stand still."""
    readers: list[threading.Thread] = []

    def tokenizer(folder: Path) -> None:
        readers.append(threading.current_thread())

    def spec(folder: Path, name: str, tokenizer: None) -> None:
        readers.append(threading.current_thread())
        raise ModelLoadError("This is far enough.")

    monkeypatch.setattr(service, "Tokenizer", tokenizer)
    monkeypatch.setattr(service, "read_embedding_spec", spec)
    with pytest.raises(ModelLoadError, match="far enough"):
        asyncio.run(service.open_model(Settings(), plain, EventBus(), print))
    assert len(readers) == 2
    assert threading.current_thread() not in readers
