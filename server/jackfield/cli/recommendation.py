"""How ``jackfield models recommend`` shows what fits."""

from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jackfield.cli.presets import plan_preset
from jackfield.models.architecture import DeviceKind
from jackfield.models.machine import Machine
from jackfield.models.recommend import Recommendation, recommend
from jackfield.models.sizes import gigabytes
from jackfield.settings import PRESETS, Settings


class Recommended:
    """What fits a machine: this one, unless ``memory`` and ``device`` describe another."""

    def __init__(self, settings: Settings, memory: int | None, device: DeviceKind | None) -> None:
        self.machine = Machine.here(memory, device)
        usable = min(self.machine.usable, settings.memory_limit or self.machine.usable)
        self.models = recommend(self.machine.kind, usable)
        self._usable = usable

    def as_json(self) -> list[dict[str, Any]]:
        """See the command's --help."""
        return [
            {
                "model": one.repository,
                "purpose": one.purpose,
                "bits": one.bits,
                "parameters": one.architecture.parameters,
                "context_length": one.context_length,
                "kv_bits": one.plan.kv_bits,
                "weights_bytes": one.plan.weights,
                "sequence_bytes": one.plan.sequence_bytes(one.context_length),
                "total_bytes": one.plan.total,
                "why": one.why,
                "command": one.command,
            }
            for one in self.models
        ]

    def show(self, most: int | None) -> None:
        """Print it for people."""
        console = Console(highlight=False)
        machine = self.machine.describe("4-bit")
        console.print(Text(f"{machine}: models may take {gigabytes(self._usable)}.\n"), soft_wrap=True)
        if not self.models:
            console.print("No Qwen model fits with a context that is of use. The smallest model to try: starter")
            return
        table = Table(Column("Model", no_wrap=True), "For", Column("Context", justify="right"), "Why", box=None)
        for one in self.models[:most]:
            table.add_row(one.repository.rpartition("/")[2], one.purpose, f"{one.context_length:,}", one.why)
        console.print(table)
        console.print(Text(f"\nThe first one:\n  {self._command(self.models[0])}"), soft_wrap=True)

    def _command(self, best: Recommendation) -> str:
        """What serves it: a preset, if there is one for it that fits."""
        fitting = (
            name
            for name, values in PRESETS.items()
            if values["model"] == best.repository and plan_preset(name, self.machine).fits
        )
        preset = next(fitting, None)
        return f"jackfield serve --preset {preset}" if preset else best.command
