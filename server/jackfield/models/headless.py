"""Checkpoints of a network without its output head, as embedding models come: Qwen3-Embedding, for one.

Their weights are named as if there were nothing around the network (``layers.0...`` instead of ``model.layers.0...``),
and config.json may speak of a head that is not there. The token embedding takes its place, so that they load and run.
"""

import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from jackfield.models.older_words import older_words

logger = logging.getLogger(__name__)

ROOTS = {"embed_tokens", "layers", "norm"}
"""All that there is in a network of mlx-lm's usual form, but for the head."""
PREFIX = "model."

Classes = tuple[Any, Any]
"""A model's class, and that of its arguments."""


def load_options(
    folder: Path, config: dict[str, Any], get_classes: Callable[[dict[str, Any]], Classes]
) -> dict[str, Any]:
    """What mlx-lm's ``load_model`` has to be told of the weights in ``folder``, and of a configuration in newer words.

    ``get_classes`` is what it uses to find a model's classes.
    """
    names = tensor_names(folder)
    if {name.removeprefix(PREFIX).partition(".")[0] for name in names} != ROOTS:
        return {"model_config": older_words(config)}
    if not config.get("tie_word_embeddings", True):
        logger.warning("The model has no output head: it makes embeddings, and what it writes means nothing.")
    options: dict[str, Any] = {"model_config": older_words(config) | {"tie_word_embeddings": True}}
    if not any(name.startswith(PREFIX) for name in names):
        options["get_model_classes"] = lambda config: _prefixing(*get_classes(config))
    return options


def tensor_names(folder: Path) -> set[str]:
    """The names in the headers of all ``model*.safetensors``; none of a file that is damaged."""
    return {name for file in folder.glob("model*.safetensors") for name in _header(file)} - {"__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    """See github.com/huggingface/safetensors: the header's length, and the header as JSON."""
    try:
        with file.open("rb") as data:
            (length,) = struct.unpack("<Q", data.read(8))
            if length > file.stat().st_size:
                return {}
            header = json.loads(data.read(length))
    except (OSError, ValueError, struct.error):
        return {}
    return header if isinstance(header, dict) else {}


def _prefixing(model_class: Any, arguments: Any) -> Classes:
    """The classes, for weights without prefix."""

    class Prefixing(model_class):  # type: ignore[misc]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            named = {f"{PREFIX}{name}": weight for name, weight in weights.items()}
            own = getattr(super(), "sanitize", None)
            return own(named) if own else named

    # Others look for a model's functions in the module of its class.
    Prefixing.__module__, Prefixing.__qualname__ = model_class.__module__, model_class.__qualname__
    return Prefixing, arguments
