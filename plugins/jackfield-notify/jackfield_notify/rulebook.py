"""Decides who hears of an event, and when."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from jackfield.hooks import Event
from jackfield_notify.preferences import Preferences, Property, Rule, Throttle
from jackfield_notify.quiet_hours import quiet_until

Reason = Literal["muted", "quiet_hours", "duplicate", "throttled"]

MOST_REMEMBERED = 1000
"""Different events that a rule remembers to find the same ones; more, and those whose time has passed are dropped."""


@dataclass(frozen=True, slots=True)
class Order:
    """Tell a target."""

    target: str
    due: float
    """Not before then, in seconds since 1970."""
    sound: bool
    held_back: int
    """So many have been kept from it since the last one, as the same or as too many."""


class SlidingWindow:
    """Lets so many pass in any stretch of so many seconds.

    The times it is given are expected to grow; a clock that was set back opens it.
    """

    def __init__(self, throttle: Throttle) -> None:
        self._seconds = throttle.seconds
        self._passed: deque[float] = deque(maxlen=throttle.messages)

    def passes(self, now: float) -> bool:
        """Whether one more may pass; it counts if so."""
        full = len(self._passed) == self._passed.maxlen
        if full and 0 <= now - self._passed[0] < self._seconds:
            return False
        self._passed.append(now)
        return True


@dataclass(slots=True)
class _Gate:
    """What one rule remembers about one target."""

    window: SlidingWindow | None
    told: dict[tuple[object, ...], float] = field(default_factory=dict)
    held_back: int = 0

    def holds_back(self, event: Event, rule: Rule, now: float) -> Reason | None:
        reason = self._reason(event, rule, now)
        self.held_back += reason is not None
        return reason

    def _reason(self, event: Event, rule: Rule, now: float) -> Reason | None:
        key = _key(event, rule.deduplicate_by)
        if 0 <= now - self.told.get(key, float("-inf")) < rule.deduplicate_seconds:
            return "duplicate"
        if self.window and not self.window.passes(now):
            return "throttled"
        if rule.deduplicate_seconds:
            self._remember(key, now, rule.deduplicate_seconds)
        return None

    def _remember(self, key: tuple[object, ...], now: float, seconds: float) -> None:
        if len(self.told) >= MOST_REMEMBERED:
            self.told = {old: at for old, at in self.told.items() if now - at < seconds}
        if len(self.told) >= MOST_REMEMBERED:
            self.told.pop(next(iter(self.told)))
        self.told[key] = now


def _key(event: Event, properties: Iterable[Property]) -> tuple[object, ...]:
    return tuple(getattr(event, name) for name in properties)


class Rulebook:
    """The preferences at work. What it remembers is lost with it: a restart or new preferences begin afresh.

    Args:
        preferences: what the user wants.
        targets: the names of all targets.
        suppressed: is told why a message was not sent.
    """

    def __init__(
        self,
        preferences: Preferences,
        targets: Iterable[str],
        suppressed: Callable[[Reason], None] = lambda reason: None,
    ) -> None:
        self.preferences = preferences
        self._targets = tuple(targets)
        self._suppressed = suppressed
        self._gates: dict[tuple[int, str], _Gate] = {}

    def decide(self, event: Event, now: float) -> list[Order]:
        """Who hears of an event.

        Args:
            event: what happened.
            now: seconds since 1970.
        """
        if not self.preferences.enabled:
            return []
        orders = (self._decide_for(target, event, now) for target in self._targets)
        return [order for order in orders if order is not None]

    def _decide_for(self, target: str, event: Event, now: float) -> Order | None:
        for index, rule in enumerate(self.preferences.rules):
            if rule.fits(event, target):
                order = self._order(target, event, now, rule, self._gate(index, rule, target))
                if not isinstance(order, Order):
                    self._suppressed(order)
                    return None
                return order
        return None

    def _gate(self, index: int, rule: Rule, target: str) -> _Gate:
        window = SlidingWindow(rule.throttle) if rule.throttle else None
        return self._gates.setdefault((index, target), _Gate(window))

    def _order(self, target: str, event: Event, now: float, rule: Rule, gate: _Gate) -> Order | Reason:
        if rule.mute:
            return "muted"
        modes = self._quiet(event, rule, now)
        if "drop" in modes:
            return "quiet_hours"
        if reason := gate.holds_back(event, rule, now):
            return reason
        sound = self.preferences.sound if rule.sound is None else rule.sound
        held_back, gate.held_back = gate.held_back, 0
        return Order(target, modes.get("hold", now), sound and "silent" not in modes, held_back)

    def _quiet(self, event: Event, rule: Rule, now: float) -> dict[str, float]:
        """What quiet hours ask for now, and until when."""
        if not rule.quiet_hours:
            return {}
        strict = [one for one in self.preferences.quiet_hours if not one.lets_through(event.level)]
        by_mode = {mode: [one for one in strict if one.mode == mode] for mode in ("hold", "drop", "silent")}
        return {mode: end for mode, hours in by_mode.items() if (end := quiet_until(hours, now)) is not None}
