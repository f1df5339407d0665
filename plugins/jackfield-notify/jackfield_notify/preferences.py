"""What the user wants to hear of: rules, quiet hours, how much of the same, and whether it may make a sound."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jackfield.hooks import Event
from jackfield_notify.level import Level, reaches
from jackfield_notify.quiet_hours import QuietHours

Seconds = Annotated[float, Field(ge=0, le=31 * 86400, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Property = Literal["kind", "level", "model", "title", "request_id"]


class Throttle(BaseModel):
    """At most so many messages in any stretch of so many seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: Annotated[int, Field(ge=1, le=10_000)]
    seconds: Annotated[float, Field(gt=0, le=31 * 86400, allow_inf_nan=False)]


class Rule(BaseModel):
    """Which events are told to whom. For each target the first rule that fits the event decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: list[Pattern] = Field(default_factory=list, max_length=100)
    """Such as ``engine_*``; none stands for all."""
    minimum_level: Level = "info"
    models: list[Pattern] = Field(default_factory=list, max_length=100)
    """Such as ``*Coder*``; none stands for all, and for events that belong to no model."""
    targets: list[Pattern] = Field(default_factory=list, max_length=100)
    """Names of targets; none stands for all."""
    mute: bool = False
    """Tell these events to nobody, whatever the rules below say."""
    sound: bool | None = None
    """Instead of the preference of that name."""
    quiet_hours: bool = True
    """Whether they hold for these events."""
    throttle: Throttle | None = None
    """For each target."""
    deduplicate_seconds: Seconds = 60
    """Tell the same event only once in so many seconds; 0 tells all."""
    deduplicate_by: list[Property] = Field(default=["kind", "model", "title"], min_length=1)
    """What makes two events the same."""

    def fits(self, event: Event, target: str) -> bool:
        """Whether it decides what a target hears of an event."""
        return (
            reaches(event.level, self.minimum_level)
            and (not self.kinds or _matches(event.kind, self.kinds))
            and (not self.models or (event.model is not None and _matches(event.model, self.models)))
            and (not self.targets or target in self.targets)
        )


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _first_rules() -> list[Rule]:
    return [Rule(minimum_level="warning", throttle=Throttle(messages=10, seconds=60))]


class Preferences(BaseModel):
    """What ``GET`` and ``PUT /v1/notifications/settings`` carry, and ``[plugins.notify.preferences]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    """False keeps all targets silent; the live stream goes on."""
    sound: bool = True
    rules: list[Rule] = Field(default_factory=_first_rules, max_length=100)
    quiet_hours: list[QuietHours] = Field(default_factory=list, max_length=20)

    def targets(self) -> set[str]:
        """All that its rules name."""
        return {name for rule in self.rules for name in rule.targets}
