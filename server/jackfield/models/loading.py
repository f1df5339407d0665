"""From a model folder to a network in memory. Runs on the engine's thread, which owns MLX."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from jackfield.errors import ModelLoadError
from jackfield.models.device import Device, import_mlx_lm
from jackfield.models.folder import check_folder, read_config
from jackfield.models.headless import load_options
from jackfield.models.memory import host_memory
from jackfield.models.sizes import gigabytes

Dtype = Literal["auto", "float32", "keep"]

HEADROOM_BYTES = 2**30
"""Left for caches and activations when deciding whether weights fit."""

SMALLER = "Serve a smaller model, or one with stronger quantization."


@dataclass(frozen=True, slots=True)
class Network:
    """A model ready to compute."""

    model: nn.Module
    config: dict[str, Any]
    context_length: int
    """Tokens of prompt and answer together that the model was made for."""
    dtype: str
    """The weights' type: ``float32``, ``bfloat16``, ``4-bit``, ..."""
    nbytes: int
    """Bytes of all weights."""
    vocabulary_size: int


def load_network(
    folder: Path,
    device: Device,
    *,
    dtype: Dtype = "auto",
    prepare: Callable[..., nn.Module] | None = None,
    shard: Callable[[nn.Module, dict[str, Any]], None] | None = None,
    memory_limit: int | None = None,
) -> Network:
    """Load the model in ``folder``.

    ``prepare(model=, config=, device=)`` may replace layers while their weights are still as the files have them.
    Before that, ``shard`` may leave a part of the network only; the rest of the weights is never read.

    On a CPU, where only float32 is fast, ``auto`` converts to it if there is memory enough (``memory_limit`` at most);
    on a GPU it leaves the weights as they are. ``float32`` converts in any case, ``keep`` in none.

    Raises:
        ModelLoadError: the files are damaged or need code of their own, mlx-lm has not the architecture, or the model
            is too large for the memory.
    """
    check_folder(folder)
    if shard is None:
        _check_memory(folder, device)
    model, config = _load(folder)
    if shard is not None:
        shard(model, config)
    if prepare is not None:
        model = prepare(model=model, config=config, device=device)
    try:
        _prepare(model, config, device, dtype, memory_limit)
    except (RuntimeError, ValueError, MemoryError) as error:  # the weights are read only now
        raise _unreadable(folder, error) from error
    gc.collect()
    mx.clear_cache()
    nbytes = sum(array.nbytes for _, array in _arrays(model))
    return Network(model, config, context_length(config), dtype_name(model), nbytes, _vocabulary_size(config))


def _load(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with weights that are read when they are first used."""
    import_mlx_lm()
    from mlx_lm.utils import _get_classes, load_model  # noqa: PLC0415

    try:
        read = read_config(folder)
        model, config = load_model(folder, lazy=True, **load_options(folder, read, _get_classes))
    except Exception as error:  # model classes raise whatever a wrong config leads to
        raise _explained(folder, error) from error
    return model, config


def _explained(folder: Path, error: Exception) -> ModelLoadError:
    """What mlx-lm could not do with the folder, in words for the user."""
    config = read_config(folder)
    if "not supported" in str(error):
        return _unsupported(folder, config, error)
    if "parameters" in str(error) or "shape" in str(error):
        first = str(error).splitlines()[0]
        return ModelLoadError(
            f"The weights in {folder} do not fit its config.json: {first}",
            suggestions=("Download the model again: files of different versions may be mixed.",),
        )
    return _unreadable(folder, error)


def _unsupported(folder: Path, config: dict[str, Any], error: Exception) -> ModelLoadError:
    code = " It comes with code of its own, which is not run here." if "auto_map" in config else ""
    return ModelLoadError(
        f"The model in {folder} (model_type {config['model_type']!r}) cannot be served: {error}{code}",
        suggestions=("Take a model of an architecture that mlx-lm has.", "See if a newer Jackfield has it."),
    )


def _unreadable(folder: Path, error: Exception) -> ModelLoadError:
    if isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error).lower():
        return ModelLoadError(
            f"The model in {folder} does not fit in memory: {error}", suggestions=(SMALLER, "Close other programs.")
        )
    return ModelLoadError(
        f"The model in {folder} cannot be loaded: {type(error).__name__}: {error}",
        suggestions=("Download the model again: a file may be damaged or cut off.",),
    )


# Memory


def _check_memory(folder: Path, device: Device) -> None:
    """Refuse what is larger than the memory before the kernel ends the process for it."""
    needed = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    _check_fits(needed, device)


def _check_fits(needed: int, device: Device) -> None:
    available = host_memory().available if device.kind == "cpu" else device.memory_bytes
    if needed > available:
        raise ModelLoadError(
            f"The model needs {needed / 1e9:.1f} GB; {available / 1e9:.1f} GB of memory are available.",
            suggestions=(SMALLER, "Close other programs."),
        )


def _float32_fits(model: nn.Module, limit: int | None) -> bool:
    size, available = float32_bytes(model), host_memory().available
    return size * 1.1 + HEADROOM_BYTES <= available and size <= (limit or available)


def float32_bytes(model: nn.Module) -> int:
    """Bytes of all weights as float32, without the scales that quantized ones have besides."""
    modules = [module for _, module in model.named_modules() if _is_quantized(module)]
    quantized = sum(module.weight.size * 32 // module.bits for module in modules)
    packed = {id(module[name]) for module in modules for name in ("weight", "scales", "biases") if name in module}
    plain = sum(array.size for _, array in _arrays(model) if id(array) not in packed)
    return 4 * int(quantized + plain)


def _arrays(model: nn.Module) -> list[tuple[str, mx.array]]:
    return cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))


# Types


def _prepare(model: nn.Module, config: dict[str, Any], device: Device, dtype: Dtype, limit: int | None) -> None:
    """Bring the weights into memory, in the type that this device computes fastest."""
    if dtype == "keep":
        mx.eval(model.parameters())
    elif dtype == "float32" or (device.kind == "cpu" and _float32_fits(model, limit)):
        _check_fits(float32_bytes(model), device)
        _to_float32(model, dequantize=True)
    elif device.kind == "cpu":
        _check_quantized(model, limit)
        # 16-bit activations are a hundred times slower here than 32-bit ones, so scales and norms are widened at least.
        _to_float32(model, dequantize=False)
    else:
        _unify(model, config)
        mx.eval(model.parameters())


def _check_quantized(model: nn.Module, limit: int | None) -> None:
    if not any(_is_quantized(module) for _, module in model.named_modules()):
        available = min(host_memory().available, limit or host_memory().available)
        raise ModelLoadError(
            f"Does not fit: the model needs {gigabytes(float32_bytes(model))} as float32, the only type of unquantized "
            f"weights that a CPU computes fast, and {gigabytes(available)} of memory are available.",
            suggestions=("Serve a quantized version of the model.", "To serve it all the same, slowly: dtype = keep"),
        )


def _to_float32(model: nn.Module, *, dequantize: bool) -> None:
    """Module by module, so that hardly more than one is in memory twice."""
    # Names, not modules: a list of them would keep the quantized weights in memory.
    for path in [path for path, module in model.named_modules() if dequantize and _is_quantized(module)]:
        _replace(model, path)
    for _, module in model.named_modules():
        # Layers that a plugin brought know best what their weights should be.
        if type(module).__module__.startswith(("mlx.", "mlx_lm.")):
            own = {name: _float32(array) for name, array in module.items() if isinstance(array, mx.array)}
            module.update(own)
            mx.eval(own)
    mx.eval(model.parameters())


def _float32(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def _replace(model: nn.Module, path: str) -> None:
    """Expand the layer that ``path`` names, such as ``layers.3.self_attn.q_proj``."""
    parent: Any = model
    *parents, last = (int(name) if name.isdigit() else name for name in path.split("."))
    for name in parents:
        parent = parent[name]
    parent[last] = _dequantized(parent[last])


def _is_quantized(module: nn.Module) -> bool:
    """Whether it is one of the layers whose weights can be expanded."""
    return type(module).__name__ in PLAIN


def _sharded(kind: str) -> nn.Module:
    from mlx.nn.layers import distributed  # noqa: PLC0415

    return cast("nn.Module", getattr(distributed, kind)(size := mx.distributed.init().size(), size, bias=False))


def _dequantized(module: Any) -> nn.Module:
    """The layer with float32 weights of the same values."""
    affine = module.mode == "affine"
    weight = mx.dequantize(
        module.weight,
        # In 16 bits the products of scale and value would be rounded once more.
        _float32(module.scales) if affine else module.scales,
        _float32(module.biases) if affine else None,
        module.group_size,
        module.bits,
        module.mode,
        module.get("global_scale"),
        dtype=mx.float32,
    )
    mx.eval(weight)
    plain: Any = PLAIN[type(module).__name__]()
    plain.weight = weight
    if "bias" in module:
        plain.bias = _float32(module.bias)
    return cast("nn.Module", plain)


def _switch_linear() -> nn.Module:
    from mlx_lm.models.switch_layers import SwitchLinear  # noqa: PLC0415

    return cast("nn.Module", SwitchLinear(1, 1, 1, bias=False))


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "QuantizedLinear": lambda: nn.Linear(1, 1, bias=False),
    "QuantizedEmbedding": lambda: nn.Embedding(1, 1),
    "QuantizedSwitchLinear": _switch_linear,
    "QuantizedAllToShardedLinear": lambda: _sharded("AllToShardedLinear"),
    "QuantizedShardedToAllLinear": lambda: _sharded("ShardedToAllLinear"),
}
"""The class of a quantized layer -> its counterpart with plain weights."""


def _unify(model: nn.Module, config: dict[str, Any]) -> None:
    """Give converted GGUF files one type of activations: their norms are float32, their scales are float16."""
    if config.get("jackfield", {}).get("source") == "gguf":
        model.set_dtype(getattr(mx, config["torch_dtype"]))


def dtype_name(model: nn.Module) -> str:
    """The type of most weights."""
    counts: Counter[str] = Counter()
    for _, module in model.named_modules():
        for array in module.values():
            if isinstance(array, mx.array):
                packed = array.dtype == mx.uint32 and "bits" in vars(module)
                counts[f"{module.bits}-bit" if packed else str(array.dtype).rpartition(".")[2]] += array.nbytes
    return counts.most_common(1)[0][0]


# Dimensions

LENGTH_KEYS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions", "n_ctx")
DEFAULT_LENGTH = 2048


def context_length(config: dict[str, Any]) -> int:
    """How many tokens the model was made for, YaRN's extension included.

    ``max_position_embeddings`` is already the extended length for other kinds of RoPE scaling; for YaRN models differ,
    see "Processing Long Texts" in Qwen2.5's model cards.
    """
    inner = {**config, **(config.get("text_config") or {})}
    length = next((int(inner[key]) for key in LENGTH_KEYS if inner.get(key)), DEFAULT_LENGTH)
    scaling = inner.get("rope_scaling") or inner.get("rope_parameters") or {}
    if (scaling.get("type") or scaling.get("rope_type")) == "yarn":
        original = scaling.get("original_max_position_embeddings") or length
        length = max(length, int(original * scaling.get("factor", 1)))
    return length


def _vocabulary_size(config: dict[str, Any]) -> int:
    return int(config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0)
