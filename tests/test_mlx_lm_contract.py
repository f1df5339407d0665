"""What Jackfield takes for granted about mlx-lm. An upgrade that breaks something breaks it here, with the reason."""

import copy
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import base
from mlx_lm.models.cache import ArraysCache, KVCache, QuantizedKVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.processors import PROCESSORS, muse_spark
from mlx_lm.utils import load_model

import vision_models
from jackfield.engine.kv_cache import RowKVCache, Rows
from jackfield.engine.runner import CacheBatch, Runner
from jackfield.engine.slab import ONE_SLAB
from jackfield.vision.processor import MODEL_TYPES
from logits import same_logits
from model_fixtures import random_weights, tiny_config, write_model

LAYERS, HEADS, DIMENSION, VOCABULARY = 2, 2, 4, 64
DENSE = ["llama", "qwen2", "qwen3"]
CONFIG: dict[str, Any] = {
    **tiny_config("", VOCABULARY, hidden_size=32, num_attention_heads=4, head_dim=8),
    "num_hidden_layers": LAYERS,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "sliding_window": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "shared_expert_intermediate_size": 16,
    "partial_rotary_factor": 0.5,
}


def network(architecture: str) -> nn.Module:
    """A small random network of mlx-lm's class."""
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(CONFIG | {"model_type": architecture}))
    mx.eval(model.parameters())
    return model


def positions(*values: float) -> mx.array:
    """Keys or values [1, HEADS, positions, DIMENSION] that tell their position."""
    return mx.broadcast_to(mx.array(values, mx.float32)[None, None, :, None], (1, HEADS, len(values), DIMENSION)) + 0


def numbers(array: mx.array, row: int = 0) -> list[float]:
    """The opposite."""
    found: list[float] = array[row, -1, :, -1].tolist()
    return found


def filled(cache: Any, *values: float) -> Any:
    """The cache after these positions, one at a time."""
    for value in values:
        cache.update_and_fetch(positions(value), -positions(value))
    return cache


# ---------------------------------------------------------------------------------------- loading


def checkpoint(folder: Path, architecture: str = "qwen2", without: str = "") -> Path:
    config = tiny_config("qwen2", VOCABULARY)
    weights = {name: array for name, array in random_weights(config).items() if name != without}
    folder.mkdir(exist_ok=True)
    write_model(folder, config | {"model_type": architecture}, weights)
    return folder


def test_load_model_gives_a_network_and_its_config(tmp_path: Path) -> None:
    model, config = load_model(checkpoint(tmp_path), lazy=True)
    assert isinstance(model, nn.Module), "load_model's first result is the network (models/loading.py)"
    expected = json.loads((tmp_path / "config.json").read_text())
    assert expected.items() <= config.items(), "load_model's second result is config.json (models/loading.py)"
    logits = model(mx.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, VOCABULARY), "a network turns [rows, count] into logits for all (engine/runner.py)"


def test_load_models_errors_can_be_told_apart(tmp_path: Path) -> None:
    told = {}
    for case, folder in {
        "architecture": checkpoint(tmp_path / "a", architecture="nonsense"),
        "tensor": checkpoint(tmp_path / "b", without="model.norm.weight"),
    }.items():
        with pytest.raises(Exception) as caught:
            load_model(folder, lazy=True)
        told[case] = [words for words in ("not supported", "parameters") if words in str(caught.value)]
    expected = {"architecture": ["not supported"], "tensor": ["parameters"]}
    assert told == expected, "models/loading.py explains load_model's errors by these words in them"


# ---------------------------------------------------------------------------------------- which cache


@pytest.mark.parametrize("architecture", [*DENSE, "qwen3_moe"])
def test_these_have_plain_caches_one_a_layer(architecture: str) -> None:
    caches = make_prompt_cache(network(architecture))
    kinds = [type(cache) for cache in caches]
    assert kinds == [KVCache] * LAYERS, "only exactly KVCache is batched without copies and shared (engine/runner.py)"


@pytest.mark.parametrize(("architecture", "other"), [("gpt_oss", RotatingKVCache), ("qwen3_next", ArraysCache)])
def test_these_have_others_too(architecture: str, other: type) -> None:
    kinds = {type(cache) for cache in make_prompt_cache(network(architecture))}
    assert kinds == {KVCache, other}, "kinds of caches that engine/runner.py does not know have come"


# ---------------------------------------------------------------------------------------- KVCache


def test_a_new_kv_cache_is_empty() -> None:
    cache = KVCache()
    empty = (cache.keys, cache.values, cache.offset)
    assert empty == (None, None, 0), "RowKVCache.extract and kv_cache.arrays make and read such caches"


def test_a_kv_cache_returns_all_positions_in_order() -> None:
    cache = KVCache()
    for end in range(1, 600, 7):
        new = range(max(0, end - 7), end)
        keys, values = cache.update_and_fetch(positions(*new), -positions(*new))
        assert numbers(keys) == list(range(end)), "update_and_fetch returns every position so far (engine/prefix_cache)"
        assert numbers(values) == [-value for value in range(end)], "and so it does for values"
        assert cache.offset == end, "offset counts positions; CacheBatch.join trusts it"
        held = numbers(cache.keys)[:end], numbers(cache.values)[:end]
        assert held == (numbers(keys), numbers(values)), "keys and values begin with them; blocks are cut from there"


@pytest.mark.parametrize("held", [1, 32, 255, 256, 257, 512])
def test_a_kv_cache_goes_on_from_what_was_put_into_it(held: int) -> None:
    cache = KVCache()
    shared = positions(*range(held)), -positions(*range(held))
    cache.keys, cache.values = shared
    cache.offset = held
    keys, values = cache.update_and_fetch(positions(-1, -2), positions(1, 2))
    assert numbers(keys) == [*range(held), -1, -2], "keys, values and offset can be set (prefix_cache.restore)"
    assert numbers(values) == [*(-value for value in range(held)), 1, 2], "keys, values and offset can be set"
    assert numbers(shared[0]) == list(range(held)), "what was put in is not overwritten: other requests share it"


def test_a_kv_caches_state_is_what_has_to_be_evaluated() -> None:
    cache = filled(KVCache(), 1, 2, 3)
    mx.eval([cache.state])
    arrays = [part for part in cache.state if isinstance(part, mx.array)]
    seen = [numbers(array)[:3] for array in arrays]
    assert seen == [[1, 2, 3], [-1, -2, -3]], "state holds the pending keys and values; prefill evaluates it"
    assert cache.nbytes >= cache.keys.nbytes + cache.values.nbytes, "nbytes counts them (memory figures)"


# ---------------------------------------------------------------------------------------- QuantizedKVCache


def varied(rows: int, heads: int, count: int) -> mx.array:
    """Keys, values or queries [rows, heads, count, 32]."""
    return mx.random.normal((rows, heads, count, 32), key=mx.random.key(count + heads))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_cache_holds_what_quantize_makes_of_each_token(bits: int) -> None:
    cache = QuantizedKVCache(32, bits)
    assert (cache.keys, cache.offset, cache.group_size, cache.bits) == (None, 0, 32, bits), "empty (engine/kv_cache)"
    new = varied(1, 2, 5)
    for position in range(5):
        keys, values = cache.update_and_fetch(new[:, :, position : position + 1], -new[:, :, position : position + 1])
    for held, expected in zip(
        (*keys, *values), (*mx.quantize(new, 32, bits), *mx.quantize(-new, 32, bits)), strict=True
    ):
        assert mx.array_equal(held, expected), "packed, scales and biases, a token by itself, along the head dimension"


@pytest.mark.parametrize("count", [1, 3])
def test_quantized_attention_takes_bool_masks_and_grouped_heads(count: int) -> None:
    queries, keys, values = varied(2, 4, count), varied(2, 2, 9), varied(2, 2, 10)[:, :, :9]
    mask = mx.arange(9) <= mx.array([[4], [9 - count]])[..., None, None] + mx.arange(count)[:, None]
    packed, packed_values = mx.quantize(keys, 32, 8), mx.quantize(values, 32, 8)
    cache = QuantizedKVCache(32, 8)
    found = base.scaled_dot_product_attention(queries + 0, packed, packed_values, cache=cache, scale=0.2, mask=mask)
    plain = [mx.dequantize(*part, 32, 8) for part in (packed, packed_values)]
    expected = mx.fast.scaled_dot_product_attention(queries, *plain, scale=0.2, mask=mask)
    assert mx.allclose(found, expected, atol=1e-5), "a cache with `bits` gets quantized attention, rows masked each"


# ---------------------------------------------------------------------------------------- what networks ask of caches


class Watched:
    """A row cache that notes what else it is asked for."""

    def __init__(self, cache: RowKVCache) -> None:
        self._cache = cache
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._cache, name)


def joined(caches: list[list[KVCache]]) -> CacheBatch:
    """One row for each list, which has one cache a layer, in one slab."""
    empty = [[mx.zeros((0, 2, 0, 8))] * 2] * LAYERS
    batch = CacheBatch([KVCache()] * LAYERS, empty, ONE_SLAB)
    for row in caches:
        batch.join(row, row[0].offset)
    return batch


@pytest.mark.parametrize("architecture", [*DENSE, "qwen3_moe"])
def test_networks_ask_row_caches_only_for_what_they_have(architecture: str) -> None:
    model = network(architecture)
    read = [make_prompt_cache(model) for _ in range(2)]
    for caches, prompt in zip(read, ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10]), strict=True):
        model(mx.array([prompt]), cache=caches)
    # A row hands its caches over when it joins, and these are asked again.
    batch = joined(copy.deepcopy(read))
    batch.reserve(1)
    watched = [Watched(layer) for layer in batch.layers]
    together = model(mx.array([[11], [12]]), cache=watched)
    asked = set().union(*(layer.asked for layer in watched))
    known = {"offset", "update_and_fetch", "make_mask", "bits"}
    assert asked <= known, f"{architecture} now needs more of a cache than RowKVCache has: {asked - known}"
    for row, (caches, token) in enumerate(zip(read, (11, 12), strict=True)):
        alone = model(mx.array([[token]]), cache=caches)
        difference = mx.max(mx.abs(together[row] - alone[0])).item()
        assert difference < 1e-4, "one offset a row (an array) means each row's own positions"


@pytest.mark.parametrize("architecture", [*DENSE, "qwen3_moe", "gpt_oss", "qwen3_next"])
def test_networks_attend_slab_by_slab(architecture: str) -> None:
    assert Runner(network(architecture)).ragged, f"{architecture}'s attention is no longer the function of its module"


def test_masks_are_asked_of_the_cache() -> None:
    asked = []

    class Cache:
        def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> str:
            asked.append((count, return_array, window_size))
            return "mask"

    mask = base.create_attention_mask(mx.zeros((1, 5, 8)), Cache(), window_size=3, return_array=True)
    assert (mask, asked) == ("mask", [(5, True, 3)]), "RowKVCache.make_mask is called like this"


def test_a_cache_without_bits_gets_plain_attention() -> None:
    queries, keys = positions(1, 2), positions(1, 2)
    plain = base.scaled_dot_product_attention(
        queries, keys, keys, cache=RowKVCache(Rows(ONE_SLAB, []), 0), scale=0.5, mask=None
    )
    expected = mx.fast.scaled_dot_product_attention(queries, keys, keys, scale=0.5, mask=None)
    assert same_logits(plain, expected), "a cache is taken for quantized when it has `bits`, and RowKVCache has none"


# ---------------------------------------------------------------------------------------- faster layers (models/cpu.py)


@pytest.mark.parametrize("architecture", DENSE)
def test_networks_find_their_functions_in_their_own_module(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(architecture)
    module = importlib.import_module(type(model).__module__)
    called = []
    for name in ("swiglu", "scaled_dot_product_attention"):
        original = getattr(module, name, None)
        assert original, f"{architecture} has no {name} of its own any more, so models/cpu.py replaces nothing"

        def noted(*arguments: Any, _name: str = name, _original: Any = original, **keywords: Any) -> mx.array:
            called.append(_name)
            return _original(*arguments, **keywords)

        monkeypatch.setattr(module, name, noted)
    model(mx.array([[1, 2]]))
    expected = ["scaled_dot_product_attention", "swiglu"] * LAYERS
    assert called == expected, "the replaced functions are the ones that networks call"


def test_replaced_functions_have_the_signatures_of_ours() -> None:
    theirs = list(inspect.signature(base.scaled_dot_product_attention).parameters)
    expected = ["queries", "keys", "values", "cache", "scale", "mask", "sinks"]
    assert theirs == expected, "models/cpu.py replaces this function by one with these parameters"
    from mlx_lm.models.activations import swiglu

    gate, x = mx.array([-3.0, 0.0, 2.0]), mx.array([1.0, 2.0, 3.0])
    assert mx.allclose(swiglu(gate, x), nn.silu(gate) * x), "models/cpu.py replaces swiglu(gate, x) = silu(gate) * x"


@pytest.mark.parametrize("architecture", [*DENSE, "qwen3_moe"])
def test_attention_layers_have_one_rope(architecture: str) -> None:
    for layer in network(architecture).layers:
        rope = layer.self_attn.rope
        assert type(rope) is nn.RoPE, "layers[...].self_attn.rope is what models/cpu.py shares between layers"
        known = (rope.dims, rope.base, rope.scale, rope.traditional)
        assert known == (8, 10000.0, 1.0, False), "RoPE's attributes say how it rotates"
        assert layer.self_attn.scale == pytest.approx(8**-0.5), "scale tells the head dimension"


# ---------------------------------------------------------------------------------------- other caches in batches


def arrays(*values: float) -> ArraysCache:
    """A recurrent layer's state, one array a value."""
    cache = ArraysCache(len(values))
    for index, value in enumerate(values):
        cache[index] = mx.full((1, 3), value)
    return cache


def test_recurrent_states_can_be_batched() -> None:
    batch = ArraysCache.merge([arrays(1, 2)])
    batch.extend(ArraysCache.merge([arrays(3, 4)]))
    batch.extend(ArraysCache.merge([arrays(5, 6)]))
    assert [batch[0][:, 0].tolist(), batch[1][:, 0].tolist()] == [[1, 3, 5], [2, 4, 6]], "extend appends rows"
    batch.filter([0, 2])
    assert batch[0][:, 0].tolist() == [1, 5], "filter keeps these rows, in this order"
    one = batch.extract(1)
    assert (one[0].shape, one[0][0, 0].item(), one[1][0, 0].item()) == ((1, 3), 5, 6), "extract takes out one row"
    assert batch.nbytes == 2 * 2 * 3 * 4, "nbytes counts the batch"


@pytest.mark.parametrize("lengths", [(3, 6, 2), (3, 20, 9), (12, 30, 8)])
def test_sliding_windows_can_be_batched(lengths: tuple[int, int, int]) -> None:
    """Rows shorter and longer than the window of 8 go on as they would alone."""
    alone = [filled(RotatingKVCache(8), *range(100 * n, 100 * n + length)) for n, length in enumerate(lengths)]
    batch = RotatingKVCache.merge([alone[0]])
    for cache in alone[1:]:
        batch.extend(cache.merge([cache]))
    for token in range(1000, 1012):
        same(batch, alone, token)
    batch.filter([0, 2])
    del alone[1]
    for token in range(2000, 2003):
        same(batch, alone, token)
    one = batch.extract(1)
    last, _ = one.update_and_fetch(positions(3000), positions(3000))
    expected, _ = alone[1].update_and_fetch(positions(3000), positions(3000))
    assert sorted(numbers(last)) == sorted(numbers(expected)), "extract takes out one row"
    assert batch.nbytes > 0, "nbytes counts the batch"


def same(batch: Any, alone: list[RotatingKVCache], token: float) -> None:
    """One more token everywhere: each row sees through the batch's mask what it sees alone."""
    offsets = [cache.offset for cache in alone]
    assert batch.offset.tolist() == offsets, "a batch's offset is an array of each row's position"
    mask = batch.make_mask(1, window_size=8)
    keys, _ = batch.update_and_fetch(*[mx.concatenate([positions(token)] * len(alone))] * 2)
    for row, cache in enumerate(alone):
        expected, _ = cache.update_and_fetch(positions(token), positions(token))
        seen = np.array(numbers(keys, row))
        if mask is not None:
            seen = seen[np.array(mx.broadcast_to(mask, (len(alone), 1, 1, len(seen)))[row, 0, 0])]
        assert sorted(seen.tolist()) == sorted(numbers(expected)), "a row in a batch sees what it would see alone"


# ---------------------------------------------------------------------------------------- quantized experts


def test_quantized_experts_can_be_expanded() -> None:
    plain = SwitchLinear(64, 32, 4, bias=False)
    quantized = plain.to_quantized(group_size=32, bits=8)
    assert type(quantized).__name__ == "QuantizedSwitchLinear", "models/loading.py finds the layer by this name"
    assert (quantized.group_size, quantized.bits, quantized.mode) == (32, 8, "affine"), "it says how it is packed"
    weight = mx.dequantize(
        quantized.weight, quantized.scales, quantized.biases, quantized.group_size, quantized.bits, quantized.mode
    )
    expanded = SwitchLinear(1, 1, 1, bias=False)
    expanded.weight = weight
    x, experts = mx.random.normal((1, 1, 1, 64)), mx.array([[3]])
    difference = mx.max(mx.abs(expanded(x, experts) - quantized(x, experts))).item()
    assert difference < 1e-4, "an expanded layer computes the same, whatever size it was made with"


# ---------------------------------------------------------------------------------------- images


def test_these_models_read_images() -> None:
    assert tuple(PROCESSORS) == MODEL_TYPES, "mlx-lm has processors for other models (vision/processor.py)"
    sources = Path(inspect.getfile(base)).parent.glob("*.py")
    reading = [file.stem for file in sources if "pixel_values" in file.read_text(encoding="utf-8")]
    assert reading == ["muse_spark"], "other models read images, or in another way (engine/images.py)"


def test_a_processor_says_what_it_makes_of_an_image() -> None:
    own = muse_spark.Processor(patch_size=14, downsample_factor=2)
    found = own.image_token, own.token_patch, own.min_num_image_tokens, own.max_num_image_tokens
    assert found == ("<|patch|>", 28, 1, 4096), "sizes of images (vision/processor.py)"
    bounds = {"patch_h": 28, "patch_w": 28, "min_tokens": 1, "max_tokens": 4096}
    target = muse_spark._find_resize_target(60, 100, **bounds)
    assert target == ((56, 84), (2, 3)), "height and width, rows and columns of tokens (vision/processor.py)"
    assert muse_spark.image_tokens(2) == "<|image_start|><|patch|><|patch|><|image_end|>"
    values, count = own.preprocess_image(np.zeros((60, 100, 3), np.uint8))
    assert (values.shape, count) == ((3, 56, 84), 6), "the engine makes values of pixels (engine/images.py)"


def test_a_model_takes_the_embeddings_of_its_images() -> None:
    settings = vision_models.config(VOCABULARY, 7)
    model = vision_models.network(settings)
    values, count = vision_models.processor(settings).preprocess_image(vision_models.picture(1))
    tokens = mx.array([[1, *[7] * count, 2]])
    whole = model.embed_inputs(tokens, pixel_values=[values])
    parts = [model.embed_inputs(mx.array([[one]]))[0] for one in (1, 2)]
    apart = mx.concatenate([parts[0], model.encode_image(values), parts[1]])
    assert mx.array_equal(whole[0], apart), "text and images are embedded apart (engine/images.py)"
    logits = model(tokens, input_embeddings=whole)
    assert same_logits(logits, model(tokens, pixel_values=[values])), "they stand for tokens (engine/runner.py)"
