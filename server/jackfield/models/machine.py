"""The machine that models are planned for: this one, or one that somebody describes."""

from dataclasses import dataclass

from jackfield.errors import ConfigurationError
from jackfield.models.architecture import DeviceKind
from jackfield.models.device import Device, describe, detect_device, load_blas
from jackfield.models.memory import host_memory
from jackfield.models.plan import usable_memory

NAMES: dict[DeviceKind, str] = {"metal": "Apple silicon", "cuda": "an NVIDIA GPU", "cpu": "a CPU"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the plan is for: this machine, or one that was described."""

    kind: DeviceKind
    memory: int
    """All of it, in bytes; of the GPU alone for ``cuda``."""
    usable: int
    """What models may take of it."""
    device: Device | None = None
    """What is here; None for another machine."""

    @classmethod
    def here(cls, memory: int | None = None, device: DeviceKind | None = None) -> "Machine":
        """This machine; another one with ``memory`` in bytes, or with another ``device``.

        Raises:
            ConfigurationError: nobody knows how much memory the other one has.
        """
        present = detect_device(load_blas())
        kind = device or present.kind
        if memory is not None:
            return cls(kind, memory, usable_memory(kind, memory))
        if kind != present.kind:
            raise ConfigurationError(
                f"There is no {kind} device here, so its memory is not known.",
                suggestions=("Say how much memory the machine has, such as --memory 48GB.",),
            )
        usable = host_memory().available if kind == "cpu" else present.memory_bytes
        return cls(kind, present.memory_bytes, usable, present)

    def describe(self, weights_type: str) -> str:
        """One line."""
        return describe(self.device, weights_type) if self.device else f"{NAMES[self.kind]}, not this machine"
