"""How ``jackfield models list`` shows what is on this machine."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jackfield.errors import ModelLoadError
from jackfield.models.architecture import Architecture, from_folder
from jackfield.models.inventory import Stored, inventory, size_of
from jackfield.models.machine import Machine
from jackfield.models.plan import MemoryPlan, plan_architecture
from jackfield.models.service import plan_options
from jackfield.models.sizes import gigabytes
from jackfield.settings import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """A model, and what it would be here; or why it would be nothing."""

    model: Stored
    architecture: Architecture | None = None
    plan: MemoryPlan | None = None
    obstacle: str | None = None

    def as_json(self) -> dict[str, Any]:
        """See the command's --help."""
        architecture, plan = self.architecture, self.plan
        return {
            "name": self.model.name,
            "kind": self.model.kind,
            "folder": str(self.model.folder),
            "bytes": self.model.nbytes,
            "used": self.model.used,
            "base_model": self.model.base_model,
            "weights_type": architecture and architecture.dtype,
            "parameters": architecture and architecture.parameters,
            "context_length": architecture and architecture.context_length,
            "context_that_fits": plan and plan.context_that_fits,
            "fits": plan and plan.fits,
            "obstacle": self.obstacle,
        }

    @property
    def fits(self) -> Text:
        """In a word."""
        if self.plan is None:
            return Text("-")
        if self.plan.fits:
            return Text("yes", "green")
        context = self.plan.context_that_fits
        return Text(f"{context:,} tokens", "yellow") if context else Text("no", "red")


class Stock:
    """All models in the caches."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._machine = Machine.here()
        self.rows = [_row(model, self._machine, settings) for model in inventory(settings.cache_dir)]

    @property
    def prefix_bytes(self) -> int:
        """What prompts that were seen before take of the disk."""
        return size_of(self._settings.cache_dir / "prefixes")

    @property
    def bytes(self) -> int:
        """What all models take."""
        return sum(row.model.nbytes for row in self.rows)

    @property
    def free(self) -> int:
        """Bytes on the disk that Jackfield's cache is on."""
        cache = self._settings.cache_dir.absolute()
        return shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free

    def as_json(self) -> dict[str, Any]:
        """See the command's --help."""
        return {
            "models": [row.as_json() for row in self.rows],
            "models_bytes": self.bytes,
            "prefix_cache_bytes": self.prefix_bytes,
            "disk_free_bytes": self.free,
        }

    def show(self) -> None:
        """Print it for people."""
        console = Console(highlight=False)
        if self.rows:
            console.print(self._table())
        else:
            console.print("There are no models here yet. Which one fits: jackfield models recommend")
        for row in self.rows:
            if row.obstacle:
                console.print(Text(f"{row.model.name} cannot be served. {row.obstacle}", "dim"), soft_wrap=True)
        for line in self._totals():
            console.print(line, soft_wrap=True)

    def _table(self) -> Table:
        right = {"justify": "right", "no_wrap": True}
        table = Table(
            Column("Model", overflow="fold"),
            Column("Weights", no_wrap=True),
            Column("Disk", **right),  # type: ignore[arg-type]
            Column("Context", **right),  # type: ignore[arg-type]
            Column("Used", no_wrap=True),
            Column("Fits here", no_wrap=True),
            box=None,
            pad_edge=False,
        )
        for row in self.rows:
            kind = "adapter" if row.model.kind == "adapter" else row.architecture.dtype if row.architecture else "-"
            context = f"{row.architecture.context_length:,}" if row.architecture else "-"
            used = datetime.fromtimestamp(row.model.used).strftime("%Y-%m-%d")
            name = Text(row.model.name)
            if row.model.base_model:
                name.append(f" for {row.model.base_model}", "dim")
            table.add_row(name, kind, gigabytes(row.model.nbytes), context, used, row.fits)
        return table

    def _totals(self) -> Iterator[str]:
        sizes = (("Models", self.bytes), ("prefix cache", self.prefix_bytes), ("free", self.free))
        yield "\n" + ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes)
        yield f"Memory for models: {gigabytes(self._machine.usable)}"


def _row(model: Stored, machine: Machine, settings: Settings) -> Row:
    if model.obstacle or model.kind == "adapter":
        return Row(model, obstacle=model.obstacle)
    try:
        architecture = from_folder(model.folder, machine.kind)
    except ModelLoadError as error:
        return Row(model, obstacle=error.message.replace(str(model.folder), "its folder"))
    plan = plan_architecture(architecture, machine.kind, machine.usable, dtype=settings.dtype, **plan_options(settings))
    return Row(model, architecture, plan)
