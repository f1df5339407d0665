"""Which part of a network each process of a group has, by mlx-lm's own means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from jackfield.errors import ModelLoadError

Parallelism = Literal["tensor", "pipeline"]
"""``tensor``: a share of the heads and neurons of every layer. ``pipeline``: some of the layers."""

PARALLELISMS: tuple[Parallelism, ...] = ("tensor", "pipeline")


class HalfDividedError(Exception):
    """A network is in pieces: mlx-lm began to share out its layers, and could not. Read anew it can be a pipeline."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a process has been left."""

    kind: Parallelism
    layers: int
    """Of the process that has the most: all have to count the bytes of as many, to decide the same about memory."""


def shard(
    model: nn.Module,
    config: Mapping[str, Any],
    group: mx.distributed.Group,
    wanted: Parallelism | None = None,
    *,
    sends: bool = True,
) -> Part:
    """Leave the network this process's part; its weights need not have been read.

    Args:
        model: the network; changed.
        config: its configuration.
        group: those among whom it is divided.
        wanted: None takes the first that is possible: sharing layers out makes each token faster, a pipeline does not.
        sends: whether a process can send to one other alone, as those of a pipeline do.

    Raises:
        ModelLoadError: it cannot be divided among so many, or not so.
        HalfDividedError: ``wanted`` is None, and the first that seemed possible was not.
    """
    obstacles = {kind: list(_OBSTACLES[kind](model, config, group.size())) for kind in PARALLELISMS}
    if not sends:
        obstacles["pipeline"].append("by these means MLX cannot send from one process to another")
    kinds = PARALLELISMS if wanted is None else (wanted,)
    kind = next((kind for kind in kinds if not obstacles[kind]), None)
    if kind is None:
        raise _indivisible(config, group.size(), {kind: obstacles[kind] for kind in kinds})
    network: Any = model
    layers = len(network.layers)
    if kind == "tensor":
        try:
            network.shard(group)
        except (AssertionError, ValueError) as error:
            # An architecture may have more to divide, such as its vocabulary. What has been begun cannot be undone.
            obstacles["tensor"] = [str(error)]
            if wanted is None and not obstacles["pipeline"]:
                raise HalfDividedError(str(error)) from error
            raise _indivisible(config, group.size(), {kind: obstacles[kind] for kind in kinds}) from error
        return Part(kind, layers)
    network.model.pipeline(group)
    return Part(kind, -(-layers // group.size()))


def _against_tensor(model: nn.Module, config: Mapping[str, Any], size: int) -> Iterator[str]:
    if not hasattr(model, "shard"):
        yield "mlx-lm cannot share out the layers of this architecture"
        return
    inner = {**config, **(config.get("text_config") or {})}
    heads = int(inner.get("num_attention_heads") or 0)
    kv_heads = int(inner.get("num_key_value_heads") or heads)
    neurons = int(inner.get("intermediate_size") or 0)
    numbers = {"attention heads": heads, "key and value heads": kv_heads, "neurons a layer": neurons}
    yield from (f"its {number} {name} are no multiple of {size}" for name, number in numbers.items() if number % size)
    if (quantization := inner.get("quantization")) and not neurons % size:
        group = int(quantization["group_size"])
        width = int(inner.get("head_dim") or int(inner.get("hidden_size") or 0) // max(heads, 1))
        parts = {"neurons": neurons // size, "attention outputs": heads * width // size}
        yield from (
            f"each would have {part} {name}, no multiple of the {group} that share a scale"
            for name, part in parts.items()
            if part % group
        )


def _against_pipeline(model: nn.Module, config: Mapping[str, Any], size: int) -> Iterator[str]:
    if not hasattr(getattr(model, "model", None), "pipeline"):
        yield "mlx-lm has no pipeline for this architecture"
    elif (layers := len(model.layers)) < size:
        yield f"it has {layers} layers only"
    elif layers % size and len({_kind(cache) for cache in make_prompt_cache(model)}) > 1:
        yield f"its {layers} layers, which are of several kinds, are no multiple of {size}"


def _kind(cache: Any) -> tuple[Any, ...]:
    """What two layers have to have in common to hold as many bytes of as many tokens."""
    inner = [_kind(one) for one in getattr(cache, "caches", ())]
    return type(cache), getattr(cache, "max_size", None), *inner


_OBSTACLES = {"tensor": _against_tensor, "pipeline": _against_pipeline}


def _indivisible(config: Mapping[str, Any], size: int, obstacles: Mapping[Parallelism, list[str]]) -> ModelLoadError:
    reasons = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in obstacles.items())
    return ModelLoadError(
        f"This model ({config.get('model_type')}) cannot be divided among {size} processes. {reasons}.",
        suggestions=(
            "Start another number of processes.",
            "Leave out --parallelism to take whichever is possible, or try --parallelism pipeline.",
        ),
    )
