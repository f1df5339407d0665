"""What a network needs in memory, read off mlx-lm's own model class without computing anything.

MLX is lazy: a network's arrays have shapes and types before they have contents, and so have the caches after a token
was sent through it. So a 32B model takes a tenth of a second and no memory to measure, its weights present or not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from jackfield.errors import ModelLoadError
from jackfield.models.device import import_mlx_lm
from jackfield.models.loading import _load, context_length, dtype_name, float32_bytes
from jackfield.models.vision_tower import VisionTower, tower_of

DeviceKind = Literal["metal", "cuda", "cpu"]
ServedType = Literal["keep", "widened", "float32"]
"""Weights as they are stored; quantized with float32 scales; or all of them float32. See `loading.load_network`."""

KV_GROUPS = (64, 32)
"""Values that share a scale and a bias in a quantized cache: the first that divides a head's dimension."""


@dataclass(frozen=True, slots=True)
class LayerState:
    """What one layer keeps of a sequence."""

    values: int = 0
    """Numbers kept for a position, keys and values together."""
    itemsize: int = 2
    """Bytes of each."""
    window: int | None = None
    """Positions after which the oldest are overwritten; None if all are kept."""
    group: int | None = None
    """Size of a quantization group; None if this layer's state cannot be quantized."""
    fixed: int = 0
    """Bytes that do not depend on the length."""

    def position_bytes(self, kv_bits: int | None = None) -> int:
        """Bytes a position, as it is or quantized to ``kv_bits`` with a scale and a bias a group."""
        if kv_bits is None or self.group is None:
            return self.values * self.itemsize
        return self.values * kv_bits // 8 + 2 * self.itemsize * (self.values // self.group)

    def nbytes(self, positions: int, kv_bits: int | None = None) -> int:
        """Bytes of a sequence of so many positions."""
        held = positions if self.window is None else min(positions, self.window)
        return self.fixed + held * self.position_bytes(kv_bits)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The dimensions that memory depends on."""

    model_type: str
    dtype: str
    """Of most weights: ``4-bit``, ``bfloat16``, ..."""
    parameters: int
    weights: Mapping[ServedType, int]
    """Bytes of all weights, by the type they are served in."""
    context_length: int
    vocabulary: int
    hidden: int
    widest: int
    """The most values that a layer makes of a token at once."""
    heads: int
    layers: tuple[LayerState, ...]
    vision: VisionTower | None = None

    def served_as(self, dtype: ServedType) -> "Architecture":
        """The same with the caches as they are when the weights are served so."""
        if dtype == "keep":
            return self
        return replace(self, layers=tuple(replace(layer, itemsize=4) for layer in self.layers))

    @property
    def quantized(self) -> bool:
        """Whether the weights are stored in fewer than 16 bits."""
        return self.dtype.endswith("bit")


def from_config(config: Mapping[str, Any], kind: DeviceKind = "cpu") -> Architecture:
    """The architecture that ``config.json`` describes.

    Raises:
        ModelLoadError: mlx-lm has no such model, or the config lacks what it needs.
    """
    try:
        model = _instantiate(dict(config))
        _quantize(model, config)
        if _from_gguf(config):
            _widen_vectors(model)
        return measure(model, config, kind)
    except Exception as error:  # model classes raise whatever a wrong config leads to
        raise _refusal(config, error) from error


def from_folder(folder: Path, kind: DeviceKind = "cpu") -> Architecture:
    """The architecture of the model in ``folder``; of its weights, only the headers are read.

    Raises:
        ModelLoadError: as `loading.load_network`.
    """
    model, config = _load(folder)
    try:
        return measure(model, config, kind)
    except Exception as error:  # as above, once the model is used
        raise _refusal(config, error) from error


def measure(model: nn.Module, config: Mapping[str, Any], kind: DeviceKind = "cpu") -> Architecture:
    """The architecture of ``model``, whose weights need not have been read yet.

    ``kind`` matters to converted GGUF files alone, whose floats get one type on a GPU.
    """
    if kind != "cpu" and _from_gguf(config):
        model.set_dtype(getattr(mx, config["torch_dtype"]))
    inner = {**config, **(config.get("text_config") or {})}
    vocabulary, layers = _send_token(model)
    return Architecture(
        model_type=str(config["model_type"]),
        dtype=dtype_name(model),
        parameters=float32_bytes(model) // 4,
        weights=_weights(model),
        context_length=context_length(dict(config)),
        vocabulary=vocabulary,
        hidden=int(inner.get("hidden_size") or 0),
        widest=_widest(model, int(inner.get("num_experts_per_tok") or 1)),
        heads=int(inner.get("num_attention_heads") or 1),
        layers=layers,
        vision=tower_of(model, config),
    )


def _weights(model: nn.Module) -> dict[ServedType, int]:
    named = cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))
    arrays = [array for _, array in named]
    floating = sum(array.size for array in arrays if mx.issubdtype(array.dtype, mx.floating))
    others = sum(array.nbytes for array in arrays if not mx.issubdtype(array.dtype, mx.floating))
    return {
        "keep": sum(array.nbytes for array in arrays),
        "widened": others + 4 * floating,
        "float32": float32_bytes(model),
    }


def _widest(model: nn.Module, experts: int) -> int:
    """Outputs of the largest layer inside; those of experts count once for each that a token is sent to."""
    widths = [0]
    for path, module in model.named_modules():
        weight = module.get("weight")
        outside = path.endswith("lm_head") or "Embedding" in type(module).__name__
        if isinstance(weight, mx.array) and weight.ndim > 1 and not outside:
            widths.append(weight.shape[-2] * (experts if weight.ndim == 3 else 1))
    return max(widths)


# Caches


def _send_token(model: nn.Module) -> tuple[int, tuple[LayerState, ...]]:
    """Size of the vocabulary, and what each layer keeps once it has seen a token."""
    from mlx_lm.models.cache import make_prompt_cache  # noqa: PLC0415

    caches = make_prompt_cache(model)
    logits = model(mx.zeros((1, 1), mx.int32), cache=caches)
    return int(logits.shape[-1]), tuple(state for cache in caches for state in _states(cache))


def _states(cache: Any) -> Iterator[LayerState]:
    """Of one of mlx-lm's caches; a list of them is one for each."""
    from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache  # noqa: PLC0415

    if isinstance(cache, CacheList):
        for inner in cache.caches:
            yield from _states(inner)
    elif isinstance(cache, KVCache | RotatingKVCache | ChunkedKVCache):
        # A layer that attends to another one's keys leaves its own cache empty.
        if cache.keys is not None:
            yield _attention(cache)
    else:
        yield LayerState(fixed=int(cache.nbytes))


def _attention(cache: Any) -> LayerState:
    keys, values = cache.keys, cache.values
    window = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
    per_position = sum(array.shape[0] * array.shape[1] * array.shape[3] for array in (keys, values))
    dimensions = [array.shape[3] for array in (keys, values)]
    groups = [group for group in KV_GROUPS if not any(dimension % group for dimension in dimensions)]
    # mlx-lm cannot quantize caches with a window.
    return LayerState(per_position, keys.itemsize, window, groups[0] if groups and window is None else None)


# Networks without weights


def _instantiate(config: dict[str, Any]) -> nn.Module:
    """The model class of a config, its weights in the type it names."""
    import_mlx_lm()
    from mlx_lm.utils import _get_classes  # noqa: PLC0415

    model_class, arguments = _get_classes(config)
    model: nn.Module = model_class(arguments.from_dict(config))
    inner = {**config, **(config.get("text_config") or {})}
    name = str(inner.get("dtype") or inner.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    model.set_dtype(getattr(mx, name))
    return model


def _quantize(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Give the layers the types that a checkpoint with this config has."""
    if (own := config.get("quantization")) is not None:
        _quantize_own(model, own)
    elif (foreign := config.get("quantization_config")) is not None:
        _quantize_foreign(model, foreign)


def _quantize_own(model: nn.Module, quantization: Mapping[str, Any]) -> None:
    """As mlx_lm.convert does it: what can be quantized is, but for what the config or the model's class say."""
    group = quantization["group_size"]
    chosen = getattr(model, "quant_predicate", None)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if path in quantization:
            answer: bool | dict[str, Any] = quantization[path]
        elif not hasattr(module, "to_quantized") or module.weight.shape[-1] % group:
            answer = False
        else:
            answer = chosen(path, module) if chosen else True
        return answer

    mode = quantization.get("mode", "affine")
    nn.quantize(model, group, quantization["bits"], mode=mode, class_predicate=predicate)


def _from_gguf(config: Mapping[str, Any]) -> bool:
    return bool(config.get("jackfield", {}).get("source") == "gguf")


def _widen_vectors(model: nn.Module) -> None:
    """GGUF files have norms and biases as float32, whatever the rest is."""
    for _, module in model.named_modules():
        vectors = {name: array for name, array in module.items() if isinstance(array, mx.array) and array.ndim == 1}
        module.update({name: array.astype(mx.float32) for name, array in vectors.items()})


FOREIGN: dict[str, dict[str, Any]] = {
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    "modelopt": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "awq": {"group_size": 128, "bits": 4},
    "gptq": {"group_size": 128, "bits": 4},
}
"""Formats that mlx-lm leaves packed when it reads them (``load_model``); it expands other ones."""


def _quantize_foreign(model: nn.Module, quantization: Mapping[str, Any]) -> None:
    """As other tools do it: linear layers alone, and not those that are listed."""
    method = str(quantization.get("quant_method"))
    if method not in FOREIGN:
        return
    listed = quantization.get("modules_to_not_convert") or quantization.get("ignore") or []
    parameters = FOREIGN[method]
    if method in ("awq", "gptq"):
        parameters = parameters | {key: quantization[key] for key in ("group_size", "bits") if key in quantization}
    group, bits = parameters["group_size"], parameters["bits"]

    def predicate(path: str, module: nn.Module) -> bool:
        plain = path.endswith("lm_head") or isinstance(module, nn.Embedding) or not hasattr(module, "to_quantized")
        return not (plain or module.weight.shape[-1] % group or any(fnmatch(path, f"{name}*") for name in listed))

    nn.quantize(model, group, bits, mode=parameters.get("mode", "affine"), class_predicate=predicate)


def _refusal(config: Mapping[str, Any], error: Exception) -> ModelLoadError:
    kind = config.get("model_type")
    if "not supported" in str(error):
        return ModelLoadError(
            f"Models of the type {kind!r} cannot be served: mlx-lm has not this architecture.",
            suggestions=("Take a model of an architecture that mlx-lm has.", "See if a newer Jackfield has it."),
        )
    return ModelLoadError(
        f"The memory for a model of the type {kind!r} cannot be worked out from its config.json: "
        f"{type(error).__name__}: {error}",
        suggestions=("Check that config.json is whole.", "Download the model again."),
    )
