"""Presets: what they promise is held, or said before anything is downloaded."""

from collections.abc import Iterator
from dataclasses import replace

from jackfield import settings as configuration
from jackfield.cli.diagnosis import diagnose
from jackfield.errors import ModelLoadError
from jackfield.models import catalogue
from jackfield.models.architecture import from_config
from jackfield.models.machine import Machine
from jackfield.models.plan import MemoryPlan, plan_architecture
from jackfield.models.service import plan_options
from jackfield.models.sizes import gigabytes
from jackfield.settings import PRESETS, Settings


def check_preset(settings: Settings) -> None:
    """See that the model of a preset fits in memory with its whole context, if there is a preset.

    Without one, a model gets as much context as there is room for.

    Raises:
        ModelLoadError: it does not fit.
    """
    if settings.preset is None:
        return
    try:
        diagnosis = diagnose(settings.of_model(settings.model))
    except ModelLoadError:
        return  # whoever fetches the model says it better
    plan = diagnosis.plan
    if not plan.fits:
        raise ModelLoadError(
            f"The preset {settings.preset} needs more memory than the {gigabytes(plan.total)} that may be used here. "
            f"{plan.shortage()}",
            suggestions=(*plan.advice, *_others(settings.preset, replace(diagnosis.machine, usable=plan.total))),
        )


def _others(preset: str, machine: Machine) -> Iterator[str]:
    """The first preset that fits here, of those that need less."""
    names = list(PRESETS)
    smaller = names[names.index(preset) + 1 :]
    if (name := next((name for name in smaller if plan_preset(name, machine).fits), None)) is not None:
        yield f"Take another preset: --preset {name}"


def plan_preset(name: str, machine: Machine) -> MemoryPlan:
    """What a preset takes of a machine, without asking the Hub."""
    settings = configuration.load({"preset": name}, environment={})
    config = catalogue.config_for(settings.model)
    assert config is not None  # noqa: S101 - the catalogue has all of them
    return plan_architecture(
        from_config(config, machine.kind),
        machine.kind,
        machine.usable,
        dtype=settings.dtype,
        **plan_options(settings),
    )
