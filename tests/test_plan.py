"""The memory plan: its arithmetic, what it is fed with, and that loaded models take what it says."""

from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType

import gguf_files
from jackfield.engine.runner import Runner
from jackfield.errors import ConfigurationError, ModelLoadError
from jackfield.models import catalogue, cpu
from jackfield.models.architecture import Architecture, LayerState, from_config, from_folder
from jackfield.models.convert import convert
from jackfield.models.description import describe_model
from jackfield.models.device import Device
from jackfield.models.loading import load_network
from jackfield.models.memory import Memory
from jackfield.models.plan import (
    MemoryPlan,
    plan_architecture,
    plan_memory,
    plan_network,
    served_type,
    usable_memory,
    workspace,
)
from jackfield.models.sizes import gigabytes, parse_size
from model_fixtures import random_weights, tiny_config

CODER = "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit"
GB, GiB = 10**9, 2**30

SMALL: dict[str, Any] = tiny_config("", 512, num_hidden_layers=4, hidden_size=256, head_dim=64)
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 64}
LINEAR |= {"linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "full_attention_interval": 4}
LATENT = {"kv_lora_rank": 128, "q_lora_rank": 64, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
DEEPSEEK = LATENT | {"num_key_value_heads": 4, "n_routed_experts": None, "first_k_dense_replace": 9}


def coder(memory: int = usable_memory("metal", 48 * GiB), **options: Any) -> MemoryPlan:
    config = catalogue.config_for(CODER)
    assert config is not None
    return plan_architecture(from_config(config, "metal"), "metal", memory, **options)


def layer(**values: Any) -> LayerState:
    return LayerState(**{"values": 1024, "group": 64} | values)


def plan(total: int, *layers: LayerState, **options: Any) -> MemoryPlan:
    needs = {"weights": 1000, "workspace": 500, "context_length": 1024, "slots": 4, "prefix_cache": 0}
    return plan_memory(total=total, layers=layers or (layer(),), **needs | options)


# The model that people ask about


def test_qwen_coder_32b_at_4_bits_on_48_gb() -> None:
    """The weights' size is that of the repository; the cache's is 64 layers x 8 heads x 128 x keys and values."""
    result = coder()
    assert result.weights == pytest.approx(18.43 * GB, rel=0.002)
    assert result.token_bytes == 64 * 8 * 128 * 2 * 2 == 262_144
    assert result.total == 36 * GiB
    assert result.fits
    assert result.full_sequences == 2
    assert result.weights + result.workspace + result.rows + result.prefix_cache == result.total


def test_qwen_coder_32b_with_32k_in_25_gb_wants_a_cache_of_8_bits() -> None:
    assert not coder(25 * GB).fits
    assert "kv_bits = 8" in coder(25 * GB).advice[0]
    tight = coder(int(19.3 * GB))
    assert 0 < tight.context_that_fits < 2048
    assert not any("context_length" in line for line in tight.advice), "nobody can use that"
    assert coder(25 * GB, kv_bits=8).fits
    assert coder(25 * GB, kv_bits=8).token_bytes == 262_144 * (8 + 32 / 64) / 16


def test_a_limit_of_ones_own_lowers_the_total() -> None:
    assert coder(memory_limit=25 * GB).total == 25 * GB
    assert coder(memory_limit=500 * GB).total == 36 * GiB


# Arithmetic


def test_everything_is_shared_out() -> None:
    sequence = 1024 * 2048
    result = plan(1500 + 10 * sequence)
    assert result.sequence_bytes() == sequence
    assert result.full_sequences == 4
    assert result.tokens_in_all == 4 * 1024
    assert result.remaining == 6 * sequence
    assert result.advice == ()


def test_sequences_that_do_not_all_fit_at_full_length() -> None:
    result = plan(1500 + 5 * 512 * 2048)
    assert (result.full_sequences, result.tokens_in_all, result.remaining) == (2, 2 * 1024 + 512, 0)
    assert "kv_bits = 8, 4 sequences" in result.advice[0]


def test_a_context_that_does_not_fit_is_lowered_to_one_that_does() -> None:
    result = plan(1500 + 700 * 2048)
    assert not result.fits
    assert result.context_that_fits == 512
    assert plan(1500 + 700 * 2048, context_length=512).fits
    assert result.remaining == -324 * 2048
    assert "kv_bits = 8" in result.advice[0]
    assert "context_length = 512" in result.advice[1]
    assert any("512" in line for line in result.lines())


def test_weights_that_do_not_fit() -> None:
    result = plan(1200)
    assert not result.fits
    assert (result.context_that_fits, result.full_sequences, result.rows, result.advice) == (0, 0, 0, ())
    assert "weights" in result.shortage()


def test_windows_and_states_stop_growing() -> None:
    result = plan(10 * GB, layer(), layer(window=256, group=None), LayerState(fixed=7777))
    assert result.token_bytes == 2048
    assert result.state_bytes == 256 * 2048 + 7777
    assert result.sequence_bytes(100) == result.sequence_bytes(256) == 2 * 256 * 2048 + 7777
    assert result.sequence_bytes(257) == (512 + 256) * 2048 + 7777


def test_sequences_that_share_a_slab_take_what_the_slab_takes() -> None:
    sequence = 1024 * 2048
    tight = plan(1500 + 9 * sequence, slots=9)
    assert tight.batch_bytes(9) == 10 * sequence, "a slab has a few slots more"
    assert (tight.full_sequences, tight.tokens_in_all) == (8, 9 * 1024)
    assert plan(1500 + 10 * sequence, slots=9).full_sequences == 9
    assert plan(1500 + 9 * 8 * sequence, slots=9, context_length=8 * 1024).full_sequences == 9, "each by itself"


def test_the_prefix_cache_takes_a_sixth_unless_told_otherwise() -> None:
    assert plan(1500 + 6 * GB, prefix_cache=None).prefix_cache == GB
    assert plan(1500 + 6 * GB, prefix_cache=5).prefix_cache == 5
    assert plan(1200, prefix_cache=None).prefix_cache == 0


def test_quantized_caches_have_scales_and_biases() -> None:
    assert layer().position_bytes(8) == 1024 + 2 * 2 * 16
    assert layer().position_bytes(4) == 512 + 2 * 2 * 16
    assert layer(itemsize=4).position_bytes(8) == 1024 + 2 * 4 * 16
    assert layer(group=None).position_bytes(8) == 2048


def test_the_weights_quantized_more_strongly_are_advised() -> None:
    architecture = from_config(catalogue.MODELS[6].config, "metal")
    advice = plan_architecture(architecture, "metal", 50 * GB).advice
    assert any("at 8 bits" in line and "34.8 GB" in line for line in advice)


def test_a_long_prompt_on_a_cpu_needs_room_for_its_scores() -> None:
    """40 heads x 32 tokens, the shortest slice, x 32,768 positions x 4 bytes, several times."""
    architecture = from_config(catalogue.MODELS[6].config)
    assert workspace(architecture, "cpu", 32768, 1) > 4 * 40 * 32 * 32768 * 4
    assert workspace(architecture, "metal", 32768, 1) < GB


# What it is fed with


def kinds(model_type: str, **changes: Any) -> list[tuple[int, int | None, bool]]:
    """(Values a position, window, whether there is a fixed state) of each layer."""
    layers = from_config(SMALL | {"model_type": model_type} | changes).layers
    return [(state.values, state.window, state.fixed > 0) for state in layers]


FULL, STATE = (256, None, False), (0, None, True)


def test_windows_are_where_mlx_lm_puts_them() -> None:
    assert kinds("qwen2", sliding_window=128, use_sliding_window=False) == [FULL] * 4
    gemma = {"sliding_window": 128, "sliding_window_pattern": 2, "query_pre_attn_scalar": 64}
    assert kinds("gemma3_text", **gemma) == [(256, 128, False), FULL] * 2


def test_recurrent_layers_have_a_fixed_state() -> None:
    rope = {"rope_parameters": {"type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}}
    text = SMALL | LINEAR | rope | {"model_type": "qwen3_5_text"}
    assert kinds("qwen3_5", text_config=text) == [STATE, STATE, STATE, FULL]


def test_latent_attention_keeps_one_vector_for_all_heads() -> None:
    assert kinds("deepseek_v3", **DEEPSEEK) == [(128 + 64, None, False)] * 4


def test_a_type_that_mlx_lm_has_not() -> None:
    with pytest.raises(ModelLoadError, match="'nonsense'"):
        from_config({"model_type": "nonsense"})


def test_a_config_that_lacks_dimensions() -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        from_config({"model_type": "qwen2"})


def test_nothing_is_allocated_for_a_model_that_is_not_here() -> None:
    config = catalogue.config_for(CODER)
    assert config is not None
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert from_config(config).parameters == 32_763_876_352
    assert mx.get_peak_memory() - before < 10_000_000


# Counts of parameters as the Hub shows them on the models' pages.
PARAMETERS = {
    "starter": 134_515_008,
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-Coder-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-Coder-14B-Instruct": 14_770_033_664,
    "mlx-community/Qwen2.5-Coder-32B-Instruct-8bit": 32_763_876_352,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B-MLX-4bit": 1_720_574_976,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "mlx-community/Qwen3-8B-6bit": 8_190_735_360,
    "Qwen/Qwen3-14B@main": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "mlx-community/Qwen3-30B-A3B-4bit": 30_532_122_624,
    "mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit": 30_532_122_624,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_catalogue_has_the_models_dimensions(name: str) -> None:
    config = catalogue.config_for(name)
    assert config is not None
    assert from_config(config).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-Coder-32B-Instruct-AWQ", "Qwen/Qwen3-8B-FP8", "acme/Qwen3-8B-mine"])
def test_the_catalogue_does_not_guess(name: str) -> None:
    assert catalogue.config_for(name) is None


def test_a_gguf_file_is_planned_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exactly as if it had been converted, though its embeddings are plain and its layers are not."""
    config = tiny_config("llama", len(gguf_files.VOCABULARY), tie_word_embeddings=False)
    weights = random_weights(config)
    add = gguf.GGUFWriter.add_tensor

    def mixed(writer: gguf.GGUFWriter, name: str, data: np.ndarray, raw_dtype: GGMLQuantizationType) -> None:
        if name == "token_embd.weight":
            data, raw_dtype = weights["model.embed_tokens.weight"].astype(np.float16), GGMLQuantizationType.F16
        add(writer, name, data, raw_dtype=raw_dtype)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", mixed)
    path = gguf_files.write(tmp_path / "model.gguf", config, weights, GGMLQuantizationType.Q8_0)
    description = describe_model(str(path), cache=tmp_path)
    assert not description.downloaded
    folder = tmp_path / "converted"
    folder.mkdir()
    convert(path, folder)
    for kind in ("cpu", "metal"):
        assert from_config(description.config, kind) == from_folder(folder, kind)


# What loaded models really take


@pytest.mark.parametrize("model", ["starter", "qwen2_starter"])
@pytest.mark.parametrize("setting", [("auto", 64 * GB), ("auto", int(1.2 * GB)), ("keep", 64 * GB)])
def test_a_loaded_model_takes_what_the_plan_says(
    model: str,
    setting: tuple[Any, int],
    device: Device,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dtype, memory = setting
    monkeypatch.setattr("jackfield.models.loading.host_memory", lambda: Memory(memory, memory))
    folder: Path = request.getfixturevalue(model)
    planned = plan_architecture(from_folder(folder, device.kind), device.kind, memory, dtype=dtype)
    before = mx.get_active_memory()
    network = load_network(folder, device, dtype=dtype, prepare=cpu.prepare)
    assert mx.get_active_memory() - before == pytest.approx(planned.weights, rel=0.01)
    runner = Runner(network.model)
    caches = runner.start()
    runner.prefill(caches, [1, 2])
    # mlx-lm's caches grow by 256 positions.
    assert sum(cache.nbytes for cache in caches) == planned.sequence_bytes(256)
    for length in (1, 256, 257, planned.context_length - 1):
        assert runner.lone_row_bytes(length) == planned.sequence_bytes(length)


def test_the_plan_at_start_up_is_the_plan_before(starter: Path, device: Device) -> None:
    network = load_network(starter, device, prepare=cpu.prepare)
    options: dict[str, Any] = {"slots": 8, "memory_limit": 4 * GB}
    before = plan_architecture(from_folder(starter, device.kind), device.kind, 64 * GB, **options)
    assert plan_network(network, device.kind, 64 * GB, **options) == before


def test_the_starter_is_planned_alike_before_it_is_downloaded(starter: Path, tmp_path: Path) -> None:
    absent = describe_model("starter", cache=tmp_path)
    assert not absent.downloaded
    ahead, here = from_config(absent.config), from_folder(starter)
    assert facts(ahead) == facts(here)


def facts(architecture: Architecture) -> tuple[Any, ...]:
    return architecture.parameters, architecture.weights["float32"], architecture.layers, architecture.context_length


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("48GB", 48 * GB), ("48 GiB", 48 * GiB), ("24g", 24 * GB), ("1.5mb", 1_500_000), ("4096", 4096), ("2KiB", 2048)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_memory_modules_have_powers_of_two() -> None:
    assert parse_size("48GB", binary=True) == 48 * GiB


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "12 apples", "1e9", "٣GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a size"):
        parse_size(text)


def test_sizes_for_people() -> None:
    found = [gigabytes(size) for size in (18_431_289_344, 46_080, 2_146_304, 99, 0)]
    assert found == ["18.4 GB", "46.1 kB", "2.1 MB", "99 bytes", "0 bytes"]


def test_a_cpu_widens_quantized_weights_no_further_than_the_limit_allows() -> None:
    config = catalogue.config_for("Qwen2.5-Coder-7B-Instruct-4bit")
    assert config is not None
    architecture = from_config(config, "cpu")
    assert served_type(architecture, "cpu", 64 * GB) == "float32"
    assert served_type(architecture, "cpu", 64 * GB, limit=40 * GB) == "float32"
    assert served_type(architecture, "cpu", 64 * GB, limit=8 * GB) == "widened"
