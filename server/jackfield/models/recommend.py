"""Which Qwen model fits a machine: planned for each of the catalogue's, without files and without a network."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from jackfield.models import catalogue
from jackfield.models.architecture import Architecture, DeviceKind, from_config
from jackfield.models.plan import KVBits, MemoryPlan, plan_architecture
from jackfield.models.sizes import gigabytes

COMFORTABLE = 24_576
"""Tokens of context that a coding assistant wants."""
SHORTEST = 8_192
"""With less, a model is of little use to one."""
BITS = (8, 4)
"""What weights are quantized to; the first that leaves room for a comfortable context is taken."""
CPU_BYTES = 3 * 10**9
"""A CPU that has to read more than so many for each token is slow: most of them manage some tens of GB in a second."""
KV_BITS: tuple[KVBits | None, ...] = (None, 8)
"""The same for keys and values."""
SLOTS = 4
"""Requests at the same time: one person's."""

CANDIDATES = (
    ("Qwen2.5-Coder-32B-Instruct", "code"),
    ("Qwen3-Coder-30B-A3B-Instruct", "code"),
    ("Qwen2.5-Coder-14B-Instruct", "code"),
    ("Qwen2.5-Coder-7B-Instruct", "code"),
    ("Qwen2.5-Coder-3B-Instruct", "code"),
    ("Qwen2.5-Coder-1.5B-Instruct", "code"),
    ("Qwen2.5-Coder-0.5B-Instruct", "code"),
    ("Qwen3-32B", "anything"),
    ("Qwen3-30B-A3B", "anything"),
    ("Qwen3-14B", "anything"),
    ("Qwen3-8B", "anything"),
    ("Qwen3-4B-Instruct-2507", "anything"),
    ("Qwen3-1.7B", "anything"),
    ("Qwen3-0.6B", "anything"),
)
"""Names that https://huggingface.co/mlx-community has with -8bit and -4bit behind them, and what they are made for."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A model as it would be served on the machine."""

    repository: str
    purpose: str
    bits: int
    plan: MemoryPlan
    architecture: Architecture
    read_bytes: int
    """What has to be read for each token: of experts only those at work."""
    fast: bool
    """Whether the machine can do that many times a second."""

    @property
    def context_length(self) -> int:
        """What fits, of what the model was made for."""
        return self.plan.context_that_fits

    @property
    def command(self) -> str:
        """What serves it so."""
        flags = f" --context-length {self.context_length}" if not self.plan.fits else ""
        flags += f" --kv-bits {self.plan.kv_bits}" if self.plan.kv_bits else ""
        return f"jackfield serve --model {self.repository}{flags}"

    @property
    def why(self) -> str:
        """A line of reasons."""
        parts = [f"weights {gigabytes(self.plan.weights)} of {gigabytes(self.plan.total)}"]
        if self.read_bytes < self.plan.weights // 2:
            parts.append(f"only {gigabytes(self.read_bytes)} of them at work for a token")
        if self.plan.kv_bits:
            parts.append(f"keys and values at {self.plan.kv_bits} bits")
        if self.context_length < COMFORTABLE:
            parts.append("its context is short for an assistant")
        if not self.fast:
            parts.append("slow on a CPU")
        return ", ".join(parts)


def recommend(kind: DeviceKind, usable: int) -> list[Recommendation]:
    """Those that fit in ``usable`` bytes, the best first.

    That is: on a CPU those that are fast enough, then those with a comfortable context, then those with more
    parameters (with fewer, if none are fast); of two that are much the same, the one for code.
    """
    found = [one for name, purpose in CANDIDATES for one in _variant(name, purpose, kind, usable)]
    return sorted(found, key=_rank, reverse=True)


def _rank(one: Recommendation) -> tuple[bool, bool, int, bool]:
    size = round(one.architecture.parameters / 1e9)
    return one.fast, one.context_length >= COMFORTABLE, size if one.fast else -size, one.purpose == "code"


def _variant(name: str, purpose: str, kind: DeviceKind, usable: int) -> Iterator[Recommendation]:
    """The mildest quantization that is fast and leaves a comfortable context, or the longest; none if too short."""
    variants = [one for bits in BITS for one in _planned(name, purpose, bits, kind, usable)]
    best = max(variants, key=lambda one: (one.fast, min(one.context_length, COMFORTABLE)))
    if best.context_length >= SHORTEST:
        yield best


def _planned(name: str, purpose: str, bits: int, kind: DeviceKind, usable: int) -> Iterator[Recommendation]:
    repository = f"mlx-community/{name}-{bits}bit"
    architecture = _architecture(repository, kind)
    for kv_bits in KV_BITS:
        plan = plan_architecture(architecture, kind, usable, slots=SLOTS, kv_bits=kv_bits)
        read = plan.weights * _active(repository) // 1000
        yield Recommendation(
            repository, purpose, bits, plan, architecture, read, fast=kind != "cpu" or read <= CPU_BYTES
        )


@cache
def _architecture(repository: str, kind: DeviceKind) -> Architecture:
    return from_config(_config(repository), kind)


def _config(repository: str) -> dict[str, Any]:
    config = catalogue.config_for(repository)
    assert config is not None  # noqa: S101 - the catalogue has all of them
    return config


def _active(repository: str) -> int:
    """Thousandths of the weights that work on a token: experts are nearly all of a mixture's."""
    config = _config(repository)
    experts, chosen = config.get("num_experts"), config.get("num_experts_per_tok")
    if not isinstance(experts, int) or not isinstance(chosen, int):
        return 1000
    return 50 + 950 * chosen // experts
