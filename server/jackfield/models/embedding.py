"""What a model's folder says about its embeddings: how hidden states become a vector, and how it may be cut.

Embedding models come with the files of sentence-transformers (sbert.net): ``modules.json`` lists what follows the
network, ``1_Pooling/config.json`` says how its hidden states are pooled. Conversions to MLX or GGUF lack them, so the
tokenizer and the model's name have a say.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jackfield.engine.request import Pooling
from jackfield.errors import ModelLoadError, UnsupportedError
from jackfield.models.folder import read_config, read_json
from jackfield.models.tokenizer import Tokenizer

ANY_SIZE = range(1, 1 << 20)
QWEN3_SIZES = range(32, 1 << 20)
"""What Qwen3-Embedding was trained for, by its model cards."""

QWEN3_END = "<|endoftext|>"

MODULES = ("Transformer", "Pooling", "Normalize")
"""What may follow one another in ``modules.json``; others have weights of their own, which are not applied here."""

POOLINGS: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
"""sentence-transformers' names, old ones and new ones, of what is known here."""


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """How a model's vectors are made."""

    width: int = 0
    """Their dimensions."""
    pooling: Pooling = "mean"
    end: int | None = None
    """A token that each text ends with, which the tokenizer does not add by itself."""
    sizes: tuple[int, ...] | range = ()
    """Numbers of dimensions that they may be cut to, as far as they have so many: the first are trained to stand for
    all."""
    obstacle: str = ""
    """Why there are none."""

    def check(self) -> None:
        """See that there are embeddings at all.

        Raises:
            UnsupportedError: there are none.
        """
        if self.obstacle:
            raise UnsupportedError(
                f"This model makes no embeddings: {self.obstacle}.",
                param="model",
                suggestions=("Serve a model that does, such as Qwen/Qwen3-Embedding-0.6B.",),
            )

    def check_size(self, dimensions: int | None) -> None:
        """See that vectors may have so many dimensions.

        Raises:
            UnsupportedError: they may not.
        """
        if dimensions is None or dimensions == self.width or (dimensions in self.sizes and dimensions < self.width):
            return
        if not self.sizes:
            what = f"This model's vectors have {self.width} dimensions, and are not known to be made to be cut."
            hint = 'If they are, its config.json should say so: "is_matryoshka": true.'
        else:
            what = f"This model's vectors of {self.width} dimensions cannot be cut to {dimensions}."
            hint = f"Send {self._listed_sizes()}."
        raise UnsupportedError(what, param="dimensions", suggestions=("Leave out 'dimensions'.", hint))

    def _listed_sizes(self) -> str:
        if isinstance(self.sizes, range):
            return f"{self.sizes[0]} to {self.width}"
        return f"one of {', '.join(map(str, self.sizes))}"

    def with_width(self, width: int | None) -> "EmbeddingSpec":
        """The same once it is known how wide hidden states are, or that they cannot be had."""
        if width is None:
            return replace(self, obstacle=self.obstacle or "its network does not give its hidden states")
        return replace(self, width=width)


def read_embedding_spec(folder: Path, name: str, tokenizer: Tokenizer) -> EmbeddingSpec:
    """How the vectors of the model in ``folder``, which is called ``name``, are made; but for their width.

    Raises:
        ModelLoadError: a file is damaged.
    """
    config = read_config(folder)
    modes = _pooling_modes(folder)
    if obstacle := _obstacle(folder, config, modes):
        return EmbeddingSpec(obstacle=obstacle)
    qwen3 = config["model_type"] == "qwen3" and "qwen3-embedding" in name.lower()
    adds_end = bool(read_json(folder / "tokenizer_config.json").get("add_eos_token"))
    # Nobody else lets texts end in a token of their own.
    ends = tokenizer.closes_texts or adds_end or qwen3
    pooling = POOLINGS[modes[0]] if modes else "last" if ends else "mean"
    return EmbeddingSpec(0, pooling, _end(tokenizer, qwen3, adds_end), _sizes(folder, config, qwen3))


def _obstacle(folder: Path, config: dict[str, Any], modes: list[str]) -> str:
    if config.get("use_bidirectional_attention"):
        return "its network is made to look in both directions, and looks back only here"
    if others := [one for one in _modules(folder) if one not in MODULES]:
        return f"it has a module {others[0]!r} behind its network, which is not applied here"
    if len(modes) > 1 or any(mode not in POOLINGS for mode in modes):
        return f"it pools by {' and '.join(modes)}, and here there are mean and lasttoken"
    return ""


def _modules(folder: Path) -> list[str]:
    try:
        listed = json.loads((folder / "modules.json").read_bytes())
        return [str(module["type"]).rpartition(".")[2] for module in listed]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError):
        return ["modules.json"]


def _pooling_modes(folder: Path) -> list[str]:
    """Usually one, or none if nothing is said; ``pooling_mode_lasttoken: true``, or ``pooling_mode: lasttoken``."""
    config = read_json(folder / "1_Pooling" / "config.json")
    named = config.get("pooling_mode")
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    return [named] if isinstance(named, str) else [key.removeprefix("pooling_mode_") for key in chosen]


def _end(tokenizer: Tokenizer, qwen3: bool, adds_end: bool) -> int | None:
    if tokenizer.closes_texts:
        return None
    if qwen3:
        # Its first version left that to its users.
        return tokenizer.special_token(QWEN3_END)
    return tokenizer.end_token if adds_end else None


def _sizes(folder: Path, config: dict[str, Any], qwen3: bool) -> tuple[int, ...] | range:
    """As vLLM has it: config.json says ``is_matryoshka`` or ``matryoshka_dimensions`` (arXiv:2205.13147)."""
    if listed := config.get("matryoshka_dimensions"):
        try:
            return tuple(sorted(map(int, listed)))
        except (TypeError, ValueError):
            raise ModelLoadError(
                f"{folder / 'config.json'} has no list of numbers as matryoshka_dimensions: {listed!r}.",
                suggestions=("Correct it, or leave it out.",),
            ) from None
    if config.get("is_matryoshka"):
        return ANY_SIZE
    return QWEN3_SIZES if qwen3 else ()
