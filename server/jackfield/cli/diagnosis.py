"""What ``jackfield doctor`` finds, and how it shows it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from jackfield.models import catalogue
from jackfield.models.architecture import Architecture, DeviceKind, from_config, from_folder
from jackfield.models.description import Description, describe_model
from jackfield.models.machine import Machine
from jackfield.models.plan import MemoryPlan, plan_architecture, served_type
from jackfield.models.service import plan_options
from jackfield.models.sizes import gigabytes
from jackfield.settings import Settings

BAR_WIDTH = 60
COLUMN = 14


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is known about a model on a machine."""

    model: Description
    architecture: Architecture
    machine: Machine
    plan: MemoryPlan
    weights_type: str

    @property
    def disk_bytes(self) -> int:
        """What fetching will write; where nobody could be asked, the weights as they are stored."""
        known = self.model.disk_bytes
        return self.architecture.weights["keep"] if known is None else known

    @property
    def disk_free(self) -> int | None:
        """Bytes, where the model would be written; None if it is here already."""
        if self.model.downloaded:
            return None
        folder = self.model.disk.resolve()
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free

    def as_json(self) -> dict[str, Any]:
        """See the command's --help."""
        facts = {
            "model": self.model.name,
            "origin": self.model.origin,
            "model_type": self.architecture.model_type,
            "parameters": self.architecture.parameters,
            "weights_type": self.weights_type,
            "model_context_length": self.architecture.context_length,
            "downloaded": self.model.downloaded,
            "disk_bytes": self.disk_bytes,
            "disk_free_bytes": self.disk_free,
            "device": self.machine.describe(self.weights_type),
            "device_kind": self.machine.kind,
            "machine_bytes": self.machine.memory,
        }
        return facts | self.plan.as_json()

    def show(self) -> None:
        """Print it for people."""
        console = Console(highlight=False, soft_wrap=True)
        for part in (self._facts(), bar(self.plan, ascii_only=console.options.ascii_only), *self._verdict()):
            console.print(part)

    def _facts(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=COLUMN)
        for name, text in self._rows():
            table.add_row(Text(name, "bold"), text)
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        plan, architecture = self.plan, self.architecture
        yield "Model", f"{self.model.name} ({architecture.model_type}, {architecture.parameters / 1e9:.2f}B parameters)"
        yield "Known from", self.model.origin
        yield "Disk", self._disk()
        yield "Device", self.machine.describe(self.weights_type)
        yield "Memory", self._memory()
        yield "Weights", f"{gigabytes(plan.weights)} ({self.weights_type})"
        yield "Activations", f"{gigabytes(plan.workspace)} at most"
        yield "KV cache", self._kv_cache()
        yield "Context", f"{plan.context_length:,} tokens: {gigabytes(plan.sequence_bytes())} for each sequence"
        yield "Slots", f"{plan.slots} at the same time: {gigabytes(plan.batch_bytes(plan.slots))} at full length"

    def _memory(self) -> str:
        machine = self.machine.memory
        return f"{gigabytes(self.plan.total)} may be used, of {gigabytes(machine)} ({machine / 2**30:.1f} GiB)"

    def _disk(self) -> str:
        if self.model.downloaded:
            return f"here, in {self.model.folder}"
        about = "about " if self.model.disk_bytes is None else ""
        free = gigabytes(self.disk_free or 0)
        return f"{self.model.fetching}: {about}{gigabytes(self.disk_bytes)}, and {free} are free"

    def _kv_cache(self) -> str:
        bits = self.plan.kv_bits or 8 * max((layer.itemsize for layer in self.plan.layers), default=2)
        text = f"{self.plan.token_bytes:,} bytes a token, at {bits} bits"
        state = self.plan.state_bytes
        return f"{text}, and {gigabytes(state)} a sequence for windows and states" if state else text

    def _verdict(self) -> Iterator[RenderableType]:
        plan = self.plan
        yield Text(plan.capacity(), "green") if plan.fits else Text(plan.shortage(), "bold red")
        for advice in plan.advice:
            yield f"  - {advice}"


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of the picture."""

    name: str
    size: int
    block: str
    plain: str
    """Instead of the block where there is only ASCII."""
    style: str


def _parts(plan: MemoryPlan) -> list[Part]:
    free = plan.remaining if plan.fits else 0
    return [
        Part("weights", plan.weights, "█", "#", "blue"),
        Part("activations", plan.workspace, "▓", "%", "magenta"),
        Part("KV cache", plan.rows - free if plan.fits else plan.sequence_bytes(), "▒", "+", "green"),
        Part("prefix cache", plan.prefix_cache if plan.fits else 0, "░", ":", "yellow"),
        Part("free", free, "·", ".", "dim"),
    ]


def bar(plan: MemoryPlan, *, ascii_only: bool = False) -> Text:
    """The memory as a picture with its legend; what does not fit stands behind a line."""
    parts = [part for part in _parts(plan) if part.size > 0]
    scale = BAR_WIDTH / max(plan.total, sum(part.size for part in parts))
    picture, legend, end = Text(), Text(), 0
    for part in parts:
        mark = part.plain if ascii_only else part.block
        start, end = end, end + part.size
        picture.append(mark * (round(end * scale) - round(start * scale)), part.style)
        legend.append(f"{mark} ", part.style).append(f"{part.name} {gigabytes(part.size)}   ")
    if not plan.fits:
        limit = round(plan.total * scale)
        picture = picture[:limit] + Text("|", "bold red") + picture[limit:]
    return Text("\n").join([Text(), picture, legend, Text()])


def diagnose(settings: Settings, memory: int | None = None, device: DeviceKind | None = None) -> Diagnosis:
    """Plan the memory for the model that ``settings`` name, as `Settings.of_model` gives them, without its weights.

    ``memory`` and ``device`` describe another machine than this one.

    Raises:
        JackfieldError: the model or the machine is not known.
    """
    machine = Machine.here(memory, device)
    model = describe_model(settings.model, cache=settings.cache_dir)
    kind = machine.kind
    architecture = from_folder(model.folder, kind) if model.folder else from_config(model.config, kind)
    plan = _plan(architecture, machine, settings)
    plan = replace(plan, advice=(*plan.advice, *_smaller_model(plan, machine, settings)))
    served = served_type(architecture, kind, machine.usable, settings.dtype, settings.memory_limit)
    return Diagnosis(model, architecture, machine, plan, "float32" if served == "float32" else architecture.dtype)


def _plan(architecture: Architecture, machine: Machine, settings: Settings) -> MemoryPlan:
    return plan_architecture(
        architecture,
        machine.kind,
        machine.usable,
        dtype=settings.dtype,
        **plan_options(settings),
    )


def _smaller_model(plan: MemoryPlan, machine: Machine, settings: Settings) -> Iterator[str]:
    """The largest of the same family that would fit, quantized alike; to 4 bits, if it is not quantized."""
    quantized = catalogue.quantization_in(settings.model) or catalogue.quantization(4)
    for known in () if plan.fits else catalogue.smaller(settings.model):
        if _plan(from_config(known.config | quantized, machine.kind), machine, settings).fits:
            yield f"Take a smaller model of the family: {known.name} at {quantized['quantization']['bits']} bits."
            return
