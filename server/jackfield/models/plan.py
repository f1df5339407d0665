"""The memory plan: what of the memory goes to weights, caches and activations, and how much context that leaves.

All sizes are bytes. `plan_memory` is arithmetic alone; `plan_architecture` and `plan_network` feed it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jackfield.engine.pace import LARGEST_SLICE, SCORED_SLICE, SMALLEST_SLICE
from jackfield.engine.slab import LENGTH_STEP, SlabSizes
from jackfield.errors import ModelLoadError
from jackfield.models.architecture import Architecture, DeviceKind, LayerState, ServedType, measure
from jackfield.models.loading import HEADROOM_BYTES, Dtype, Network
from jackfield.models.memory import host_memory
from jackfield.models.sizes import gigabytes
from jackfield.models.vision_tower import VisionTower

KVBits = Literal[8, 4]

KV_BITS: tuple[KVBits, ...] = (8, 4)

CONTEXT_STEP = LENGTH_STEP
"""Contexts that are proposed are multiples of this."""
SHORTEST_SHARE = 16
"""A context of less than one part in so many of what the model was made for is no advice."""
SLABS = SlabSizes()
"""In what the rows of the batch lie."""
PREFIX_CACHE_SHARE = 6
"""The prefix cache takes one part in so many of what weights and activations leave."""
WEIGHT_BITS, WEIGHT_GROUP = (8, 6, 4), 64
"""What models are quantized to."""

# What of a machine's memory models may take; on the machine itself it is asked, see `device.detect_device`.
# Metal's recommendedMaxWorkingSetSize has been two thirds below 36 GiB (10.67 of 16: github.com/exo-explore/exo,
# pull request 1672) and three quarters from there on (36 of 48); newer versions of macOS allow somewhat more.
METAL_LARGE = 36 * 2**30
METAL_SHARE, METAL_LARGE_SHARE = 2 / 3, 3 / 4
CUDA_SHARE = 0.9
"""The rest is for the CUDA context and the screen."""
CPU_SHARE = 0.9
"""The rest is for the system."""

# The activations of a slice of a prompt. The slice's length: `engine/pace.py`.
CPU_FLOPS, CPU_SCORES = 2e11, 4e8
"""What a fast CPU multiplies in a second, and how many scores of attention it makes; a slice there takes a second."""
CPU_SCORE_COPIES = 8
"""Arrays as large as a layer's scores that `models/cpu.py` has at once: measured with the starter, 7.3 to 8."""
LOGIT_COPIES = 3

IMAGE_SHARE = 10
"""Encoding an image takes one part in so many of the memory, and no more; larger images are scaled down."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the memory is shared out."""

    total: int
    """What the process may use."""
    weights: int
    workspace: int
    """Activations of a slice of a prompt, and the logits of all rows; or those of an image, if they are more."""
    layers: tuple[LayerState, ...]
    context_length: int
    """Tokens that each sequence may take."""
    slots: int
    """Sequences that are answered at the same time."""
    kv_bits: KVBits | None
    prefix_cache: int
    """Budget of the prefix cache."""
    cache_limit: int | None = None
    """What the user wants the prefix cache to have; None for its part of what is left."""
    image_tokens: int = 0
    """Tokens of the largest image; 0 for models that read none."""
    advice: tuple[str, ...] = ()
    """What would make it fit, or fit better."""

    def within(self, total: int) -> "MemoryPlan":
        """The same when the process may use so much; the prefix cache gets what it was given, or its part."""
        plan = replace(self, total=total)
        share = max(0, plan.kv_pool // PREFIX_CACHE_SHARE)
        return replace(plan, prefix_cache=share if self.cache_limit is None else self.cache_limit)

    def fitting(self) -> "MemoryPlan":
        """The same with as much context as there is room for, where there is none for all of it.

        Raises:
            ModelLoadError: there is hardly any.
        """
        if self.fits:
            return self
        if self.context_that_fits < CONTEXT_STEP:
            raise ModelLoadError(self.shortage(), suggestions=self.advice)
        return replace(self, context_length=self.context_that_fits)

    @property
    def token_bytes(self) -> int:
        """What a sequence grows by with each token, beyond all windows."""
        return sum(layer.position_bytes(self.kv_bits) for layer in self.layers if layer.window is None)

    @property
    def state_bytes(self) -> int:
        """What each sequence takes besides: sliding windows once they are full, and recurrent states."""
        return self.sequence_bytes() - self.token_bytes * SLABS.round_up(self.context_length)

    def sequence_bytes(self, positions: int | None = None) -> int:
        """What a sequence of so many positions takes when it is alone; of the full context, unless they are given."""
        length = SLABS.round_up(self.context_length if positions is None else positions)
        return sum(layer.nbytes(length, self.kv_bits) for layer in self.layers)

    def batch_bytes(self, sequences: int) -> int:
        """What so many sequences of the full context take together."""
        shared = SLABS.limit(self.context_length) is not None
        return (SLABS.slots(sequences) if shared else sequences) * self.sequence_bytes()

    @property
    def kv_pool(self) -> int:
        """What is left for the rows of the batch and the prefix cache; negative if not even the weights fit."""
        return self.total - self.weights - self.workspace

    @property
    def rows(self) -> int:
        """What the rows of the batch have while the prefix cache is full; more when they need it, for it gives way."""
        return max(0, self.kv_pool - self.prefix_cache)

    @property
    def full_sequences(self) -> int:
        """Sequences that can have the full context at the same time."""
        fitting = range(1, self.slots + 1)
        return bisect_right(fitting, self.kv_pool, key=self.batch_bytes)

    @property
    def tokens_in_all(self) -> int:
        """Tokens that all sequences together can hold, if as many as possible are as long as the context."""
        full = self.full_sequences
        rest = self._longest(self.kv_pool - self.batch_bytes(full)) if full < self.slots else 0
        return full * self.context_length + rest

    @property
    def context_that_fits(self) -> int:
        """The longest that a sequence can be when it is alone; a multiple of CONTEXT_STEP, or the full context."""
        return self._longest(self.kv_pool)

    @property
    def remaining(self) -> int:
        """What is left with all slots at full length and a full prefix cache; negative: what one sequence lacks."""
        if not self.fits:
            return self.kv_pool - self.sequence_bytes()
        return max(0, self.rows - self.batch_bytes(self.slots))

    @property
    def fits(self) -> bool:
        """Whether at least one sequence can have the full context."""
        return self.sequence_bytes() <= self.kv_pool

    def _longest(self, room: int) -> int:
        if self.sequence_bytes() <= room:
            return self.context_length
        steps = range(0, self.context_length, CONTEXT_STEP)
        # Bisected, for windows make the cost of a position change on the way.
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.sequence_bytes(steps[middle]) <= room else (low, middle - 1)
        return steps[low] if self.sequence_bytes(steps[low]) <= room else 0

    def lines(self) -> list[str]:
        """For the start-up screen."""
        parts = [("weights", self.weights), ("activations", self.workspace), ("KV cache", self.rows)]
        parts += [("prefix cache", self.prefix_cache)] if self.prefix_cache else []
        shares = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts)
        type_ = f" at {self.kv_bits} bits" if self.kv_bits else ""
        lines = [f"Memory {gigabytes(self.total)}: {shares}. KV cache: {gigabytes(self.token_bytes)} a token{type_}"]
        if self.image_tokens:
            lines.append(f"Images: of up to {self.image_tokens:,} tokens each, larger ones are scaled down")
        if not self.fits:
            return [*lines, self.shortage(), *self.advice]
        return [*lines, self.capacity()]

    def capacity(self) -> str:
        """How many sequences fit, in words."""
        context = f"Context {self.context_length:,} tokens"
        if self.full_sequences == self.slots:
            return f"{context} x {self.slots} at the same time: all fit, and {gigabytes(self.remaining)} remain"
        return (
            f"{context}: {self.full_sequences} of {self.slots} sequences fit at full length, "
            f"{self.tokens_in_all:,} tokens in all"
        )

    def shortage(self) -> str:
        """Why it does not fit, in words."""
        if self.kv_pool < 0:
            needed = gigabytes(self.weights + self.workspace)
            return f"Does not fit: weights and activations need {needed} of {gigabytes(self.total)}."
        return (
            f"Does not fit: {self.context_length:,} tokens take {gigabytes(self.sequence_bytes())} of KV cache, "
            f"{gigabytes(self.kv_pool)} are left; a context of {self.context_that_fits:,} fits."
        )

    def as_json(self) -> dict[str, Any]:
        """All numbers under names that stay, for programs."""
        return {
            "fits": self.fits,
            "total_bytes": self.total,
            "weights_bytes": self.weights,
            "workspace_bytes": self.workspace,
            "kv_pool_bytes": max(0, self.kv_pool),
            "prefix_cache_bytes": self.prefix_cache,
            "remaining_bytes": self.remaining,
            "kv_bits": self.kv_bits,
            "kv_bytes_per_token": self.token_bytes,
            "state_bytes_per_sequence": self.state_bytes,
            "sequence_bytes": self.sequence_bytes(),
            "image_tokens": self.image_tokens,
            "context_length": self.context_length,
            "context_that_fits": self.context_that_fits,
            "slots": self.slots,
            "sequences_at_full_context": self.full_sequences,
            "tokens_in_all": self.tokens_in_all,
            "advice": list(self.advice),
        }


def plan_memory(
    *,
    total: int,
    weights: int,
    workspace: int,
    layers: Sequence[LayerState],
    context_length: int,
    slots: int,
    kv_bits: KVBits | None = None,
    prefix_cache: int | None = None,
    memory_limit: int | None = None,
) -> MemoryPlan:
    """Share out ``total`` bytes.

    ``prefix_cache`` is a budget in bytes; unless it is given, a sixth of what weights and activations leave.
    ``memory_limit`` is the user's own limit for everything.
    """
    usable = total if memory_limit is None else min(total, memory_limit)
    plan = MemoryPlan(usable, weights, workspace, tuple(layers), context_length, slots, kv_bits, 0, prefix_cache)
    plan = plan.within(usable)
    return replace(plan, advice=tuple(_advice(plan)))


def _advice(plan: MemoryPlan) -> Iterator[str]:
    """Settings that would help, each tried by itself."""
    smaller = [replace(plan, kv_bits=bits) for bits in KV_BITS if bits < (plan.kv_bits or 16)]
    if plan.fits:
        better = [other for other in smaller[:1] if other.full_sequences > plan.full_sequences]
        yield from (
            f"With kv_bits = {other.kv_bits}, {other.full_sequences} sequences fit at full length." for other in better
        )
        return
    if (enough := next((other for other in smaller if other.fits), None)) is not None:
        yield f"Set kv_bits = {enough.kv_bits}: the context of {plan.context_length:,} tokens fits then."
    if plan.context_that_fits * SHORTEST_SHARE >= plan.context_length:
        yield f"Set context_length = {plan.context_that_fits}."


# What feeds it


def usable_memory(kind: DeviceKind, machine: int) -> int:
    """What models may take of a machine with so many bytes of memory (of the GPU's own memory for ``cuda``)."""
    if kind == "metal":
        return int(machine * (METAL_LARGE_SHARE if machine >= METAL_LARGE else METAL_SHARE))
    return int(machine * (CUDA_SHARE if kind == "cuda" else CPU_SHARE))


def served_type(
    architecture: Architecture,
    kind: DeviceKind,
    available: int,
    dtype: Dtype = "auto",
    limit: int | None = None,
) -> ServedType:
    """What `loading.load_network` makes of the weights when so many bytes are free, or no more may be used."""
    if dtype == "float32":
        return "float32"
    if dtype == "keep" or kind != "cpu":
        return "keep"
    size = architecture.weights["float32"]
    fits = size * 1.1 + HEADROOM_BYTES <= available and size <= (limit or available)
    # Weights that are not quantized are refused on a CPU unless they fit as float32.
    return "float32" if fits or not architecture.quantized else "widened"


def plan_architecture(
    architecture: Architecture,
    kind: DeviceKind,
    total: int,
    *,
    dtype: Dtype = "auto",
    context_length: int | None = None,
    slots: int = 32,
    image_tokens: int | None = None,
    **options: Any,
) -> MemoryPlan:
    """The plan for a model that is not loaded, with ``total`` bytes free; ``options`` as for `plan_memory`."""
    served = served_type(architecture, kind, total, dtype, options.get("memory_limit"))
    weights, needs = architecture.weights[served], architecture.served_as(served)
    return _plan(
        needs, weights, kind, total, context_length=context_length, slots=slots, image_tokens=image_tokens, **options
    )


def plan_network(
    network: Network,
    kind: DeviceKind,
    memory: int,
    *,
    context_length: int | None = None,
    slots: int = 32,
    image_tokens: int | None = None,
    layers: int | None = None,
    **options: Any,
) -> MemoryPlan:
    """The plan for a model that has been loaded; ``options`` as for `plan_memory`.

    ``memory`` is the device's; on a CPU what is free counts instead, and the weights themselves. So many ``layers``
    count, if another process of a group has more than this one, of the same kind.
    """
    needs = _with_layers(measure(network.model, network.config), layers)
    total = host_memory().available + network.nbytes if kind == "cpu" else memory
    weights = network.nbytes
    return _plan(
        needs,
        weights,
        kind,
        total,
        context_length=context_length,
        slots=slots,
        image_tokens=image_tokens,
        **options,
    )


def _with_layers(architecture: Architecture, count: int | None) -> Architecture:
    own = architecture.layers
    return architecture if count is None else replace(architecture, layers=own + own[-1:] * (count - len(own)))


def _plan(
    architecture: Architecture,
    weights: int,
    kind: DeviceKind,
    total: int,
    *,
    context_length: int | None,
    slots: int,
    image_tokens: int | None,
    **options: Any,
) -> MemoryPlan:
    context = min(context_length or architecture.context_length, architecture.context_length)
    usable = min(total, options.get("memory_limit") or total)
    images = _image_tokens(architecture.vision, usable // IMAGE_SHARE, image_tokens)
    encoding = architecture.vision.nbytes(images) if architecture.vision else 0
    plan = plan_memory(
        total=total,
        weights=weights,
        workspace=max(workspace(architecture, kind, context, slots), encoding),
        layers=architecture.layers,
        context_length=context,
        slots=slots,
        **options,
    )
    advice = (*plan.advice, *_quantization_advice(plan, architecture, kind))
    return replace(plan, image_tokens=images, advice=advice)


def _image_tokens(tower: VisionTower | None, nbytes: int, wanted: int | None) -> int:
    """Tokens of the largest image: as many as are wanted, or else as can be encoded in so many bytes."""
    if tower is None:
        return 0
    return tower.affordable(nbytes) if wanted is None else min(wanted, tower.max_tokens)


def _quantization_advice(plan: MemoryPlan, architecture: Architecture, kind: DeviceKind) -> Iterator[str]:
    """The mildest quantization of the weights that would make it fit, in groups of 64."""
    scale = 32 if kind == "cpu" else 16
    for bits in WEIGHT_BITS:
        weights = int(architecture.parameters * (bits + 2 * scale / WEIGHT_GROUP) / 8)
        if not plan.fits and weights < plan.weights and replace(plan, weights=weights).fits:
            yield f"Take the model at {bits} bits: its weights are about {gigabytes(weights)} then."
            return


def workspace(architecture: Architecture, kind: DeviceKind, context: int, slots: int) -> int:
    """Bytes of activations: of one layer for a slice of a prompt, and of the logits.

    A layer has about three arrays of its widest part at once (gate, up, their product) and six of the hidden size
    (residual, norm, queries, keys, values, output). A GPU makes no scores; a CPU keeps them all.
    """
    length = prefill_slice(architecture, kind, context)
    itemsize = max((layer.itemsize for layer in architecture.layers), default=2)
    activations = length * (3 * architecture.widest + 6 * architecture.hidden) * itemsize
    scores = CPU_SCORE_COPIES * 4 * architecture.heads * length * context if kind == "cpu" else 0
    logits = LOGIT_COPIES * 4 * max(slots, SCORED_SLICE) * architecture.vocabulary
    return activations + scores + logits


def prefill_slice(architecture: Architecture, kind: DeviceKind, context: int) -> int:
    """Tokens of a prompt that are read at once: what takes about a second."""
    if kind != "cpu":
        return LARGEST_SLICE
    multiplied = CPU_FLOPS / (2 * max(architecture.parameters, 1))
    scored = CPU_SCORES / (len(architecture.layers) * architecture.heads * context)
    return int(max(SMALLEST_SLICE, min(LARGEST_SLICE, multiplied, scored)))
