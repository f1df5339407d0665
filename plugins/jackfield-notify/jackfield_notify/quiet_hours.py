"""When nobody is to be woken."""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from jackfield_notify.level import Level, reaches

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

MOST_IN_A_ROW = 32
"""Quiet hours that touch one another count as one, up to so many."""


def _time(value: Any) -> Any:
    if isinstance(value, time):  # as TOML writes it
        value = value.isoformat("minutes" if value.second == value.microsecond == 0 else "auto")
    try:
        return datetime.strptime(value, "%H:%M").time()
    except (TypeError, ValueError):
        raise ValueError("write the time as HH:MM, such as 22:30") from None


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name[:64]!r} is no time zone; write it like Europe/Berlin, or UTC") from None
    return name


WallTime = Annotated[time, BeforeValidator(_time), PlainSerializer(lambda at: at.isoformat("minutes"), return_type=str)]


class QuietHours(BaseModel):
    """A part of the day, by the clock on the wall; over midnight when it ends before it begins.

    A time that the clock skips in spring counts as an hour later, one that it shows twice in autumn counts the first
    time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: WallTime
    end: WallTime
    days: list[Day] = Field(default=list(DAYS), min_length=1)
    """On which it begins."""
    time_zone: Annotated[str, AfterValidator(_zone)] | None = None
    """Such as ``Europe/Berlin``; by default the machine's own."""
    mode: Literal["hold", "drop", "silent"] = "hold"
    """What becomes of a message: it waits for the end, is not sent at all, or is sent without a sound."""
    let_through: Level | Literal["nothing"] = "error"
    """Messages of this level or above are sent all the same."""

    @model_validator(mode="after")
    def _some_end(self) -> "QuietHours":
        if self.start == self.end:
            raise ValueError("start and end are the same; leave the quiet hours out, or set enabled to false")
        return self

    def lets_through(self, level: str) -> bool:
        """Whether messages of a level are sent all the same."""
        return self.let_through != "nothing" and reaches(level, self.let_through)

    def ends(self, moment: float) -> float | None:
        """When they end, if they hold at a moment; both in seconds since 1970."""
        today = datetime.fromtimestamp(moment, self._zone).date()
        for day in (today - timedelta(days=1), today):
            begin, end = self._on(day)
            if DAYS[day.weekday()] in self.days and begin <= moment < end:
                return end
        return None

    @property
    def _zone(self) -> ZoneInfo | None:
        return ZoneInfo(self.time_zone) if self.time_zone else None

    def _on(self, day: date) -> tuple[float, float]:
        last = day if self.start < self.end else day + timedelta(days=1)
        return self._instant(day, self.start), self._instant(last, self.end)

    def _instant(self, day: date, at: time) -> float:
        return datetime.combine(day, at, self._zone).timestamp()


def quiet_until(hours: Iterable[QuietHours], moment: float) -> float | None:
    """When it stops being quiet, if it is quiet at a moment; both in seconds since 1970."""
    every = list(hours)
    until: float | None = None
    for _ in range(MOST_IN_A_ROW):
        at = moment if until is None else until
        later = max((end for one in every if (end := one.ends(at)) is not None), default=None)
        if later is None:
            break
        until = later
    return until
