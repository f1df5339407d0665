"""Rules, quiet hours, throttling and deduplication."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jackfield.hooks import Event
from jackfield_notify.preferences import Preferences, Throttle
from jackfield_notify.quiet_hours import DAYS, QuietHours, quiet_until
from jackfield_notify.rulebook import Order, Reason, Rulebook, SlidingWindow

BERLIN = "Europe/Berlin"
ZONES = ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns"]
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp()


def event(kind: str = "failed", level: str = "error", title: str = "It failed.", **more: object) -> Event:
    return Event(kind, level, title, **more)  # type: ignore[arg-type]


def book(*rules: dict[str, object], targets: tuple[str, ...] = ("phone",), **preferences: object) -> Rulebook:
    return Rulebook(Preferences.model_validate({"rules": list(rules), **preferences}), targets)


def told(rules: Rulebook, what: Event, now: float = NOON) -> list[str]:
    return [order.target for order in rules.decide(what, now)]


def quiet(start: str, end: str, zone: str | None = "UTC", **more: object) -> QuietHours:
    return QuietHours.model_validate({"start": start, "end": end, "time_zone": zone, **more})


def moment(text: str, zone: str = "UTC", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


# --- Rules -----------------------------------------------------------------------------------------------------------


def test_without_preferences_warnings_and_errors_are_told() -> None:
    rules = Rulebook(Preferences(), ["phone", "chat"])
    assert told(rules, event(level="error")) == ["phone", "chat"]
    assert told(rules, event("memory_pressure", "warning")) == ["phone", "chat"]
    assert told(rules, event("completed", "info")) == []


@pytest.mark.parametrize(
    ("rule", "matching", "other"),
    [
        ({"kinds": ["engine_*", "failed"]}, event("engine_failed"), event("completed")),
        ({"minimum_level": "warning"}, event(level="warning"), event(level="info")),
        ({"models": ["*Coder*"]}, event(model="Qwen2.5-Coder-7B"), event(model="starter")),
        ({"models": ["*"]}, event(model="starter"), event(model=None)),
    ],
)
def test_a_rule_looks_at_kind_level_and_model(rule: dict[str, object], matching: Event, other: Event) -> None:
    rules = book(rule)
    assert told(rules, matching) == ["phone"]
    assert told(rules, other) == []


def test_the_first_rule_that_fits_decides_for_each_target() -> None:
    rules = book(
        {"kinds": ["completed"], "targets": ["phone"], "mute": True},
        {"kinds": ["completed"]},
        targets=("phone", "chat"),
    )
    assert told(rules, event("completed", "info")) == ["chat"]


def test_nobody_is_told_when_notifications_are_off() -> None:
    assert told(book({}, enabled=False), event()) == []


@pytest.mark.parametrize(("general", "own", "sound"), [(True, None, True), (False, None, False), (True, False, False)])
def test_sound_is_a_preference_that_a_rule_may_override(general: bool, own: bool | None, sound: bool) -> None:
    [order] = book({"sound": own}, sound=general).decide(event(), NOON)
    assert order.sound is sound


# --- Deduplication ---------------------------------------------------------------------------------------------------


def test_the_same_event_is_told_once_within_the_window() -> None:
    rules = book({"deduplicate_seconds": 60})
    assert told(rules, event(), NOON) == ["phone"]
    assert told(rules, event(), NOON + 59) == []
    assert told(rules, event(), NOON + 60) == ["phone"]


def test_what_makes_events_the_same_can_be_chosen() -> None:
    rules = book({"deduplicate_by": ["kind", "request_id"]})
    assert told(rules, event(request_id="a")) == ["phone"]
    assert told(rules, event(request_id="b")) == ["phone"]
    assert told(rules, event(title="Something else.", request_id="a")) == []


def test_no_window_tells_every_event() -> None:
    rules = book({"deduplicate_seconds": 0})
    assert told(rules, event()) == told(rules, event()) == ["phone"]


def test_the_next_message_says_how_many_were_held_back() -> None:
    rules = book({"deduplicate_seconds": 60})
    counts = [order.held_back for at in (0, 1, 2, 61, 122) for order in rules.decide(event(), NOON + at)]
    assert counts == [0, 2, 0]


def test_a_reason_is_given_for_everything_that_is_not_sent() -> None:
    reasons: list[Reason] = []
    preferences = Preferences.model_validate(
        {"rules": [{"kinds": ["slow"], "mute": True}, {"throttle": {"messages": 1, "seconds": 60}}]}
    )
    rules = Rulebook(preferences, ["phone"], reasons.append)
    for what in (event("slow"), event(), event(), event(title="Another.")):
        rules.decide(what, NOON)
    assert reasons == ["muted", "duplicate", "throttled"]


def test_very_many_different_events_do_not_fill_the_memory() -> None:
    rules = book({"deduplicate_seconds": 3600})
    for number in range(3000):
        assert told(rules, event(title=str(number)), NOON + number / 1000) == ["phone"]
    [gate] = rules._gates.values()
    assert len(gate.told) <= 1000


# --- Throttling ------------------------------------------------------------------------------------------------------

gaps = st.lists(st.floats(0, 100, allow_nan=False), max_size=60)


@given(messages=st.integers(1, 5), seconds=st.floats(0.5, 50), gaps=gaps)
def test_no_stretch_of_time_has_more_than_the_throttle_lets_through(
    messages: int, seconds: float, gaps: list[float]
) -> None:
    window = SlidingWindow(Throttle(messages=messages, seconds=seconds))
    now = NOON
    passed: list[float] = []
    for gap in gaps:
        now += gap
        if window.passes(now):
            passed.append(now)
    for first, too_many in zip(passed, passed[messages:], strict=False):
        assert too_many - first >= seconds


@given(messages=st.integers(1, 5), seconds=st.floats(0.5, 50), gaps=gaps)
def test_the_throttle_refuses_only_what_would_be_too_many(messages: int, seconds: float, gaps: list[float]) -> None:
    window = SlidingWindow(Throttle(messages=messages, seconds=seconds))
    now = NOON
    passed: list[float] = []
    for gap in gaps:
        now += gap
        recent = [at for at in passed if now - at < seconds]
        assert window.passes(now) == (len(recent) < messages)
        if len(recent) < messages:
            passed.append(now)


def test_a_clock_that_is_set_back_does_not_silence_anybody() -> None:
    rules = book({"throttle": {"messages": 1, "seconds": 3600}})
    assert told(rules, event(), NOON) == ["phone"]
    assert told(rules, event(), NOON - 86400) == ["phone"]


# --- Quiet hours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("2026-01-15 21:59", None),
        ("2026-01-15 22:00", "2026-01-16 07:00"),
        ("2026-01-16 03:00", "2026-01-16 07:00"),
        ("2026-01-16 07:00", None),
    ],
)
def test_quiet_hours_over_midnight(at: str, until: str | None) -> None:
    ends = quiet_until([quiet("22:00", "07:00", BERLIN)], moment(at, BERLIN))
    assert ends == (moment(until, BERLIN) if until else None)


def test_quiet_hours_can_begin_on_some_days_only() -> None:
    weekend = quiet("22:00", "10:00", days=["fri", "sat"])
    assert weekend.ends(moment("2026-01-16 23:00")) == moment("2026-01-17 10:00")  # from Friday on
    assert weekend.ends(moment("2026-01-15 23:00")) is None  # Thursday
    assert weekend.ends(moment("2026-01-18 09:00")) == moment("2026-01-18 10:00")  # since Saturday


def test_quiet_hours_that_touch_count_as_one() -> None:
    both = [quiet("22:00", "00:00"), quiet("00:00", "07:00")]
    assert quiet_until(both, moment("2026-01-15 23:00")) == moment("2026-01-16 07:00")


def test_an_end_that_the_clock_skips_counts_as_an_hour_later() -> None:
    # On 29 March 2026 the clocks in Berlin go from 02:00 to 03:00.
    hours = [quiet("22:00", "02:30", BERLIN)]
    assert quiet_until(hours, moment("2026-03-29 01:00", BERLIN)) == moment("2026-03-29 03:30", BERLIN)


def test_an_end_that_the_clock_shows_twice_counts_the_first_time() -> None:
    # On 25 October 2026 they go from 03:00 back to 02:00.
    hours = [quiet("22:00", "02:30", BERLIN)]
    first, second = (moment("2026-10-25 02:30", BERLIN, fold) for fold in (0, 1))
    assert second - first == 3600
    assert quiet_until(hours, first - 60) == first
    assert quiet_until(hours, second - 60) is None


def test_the_hours_of_a_night_change_with_the_clocks() -> None:
    hours = [quiet("22:00", "07:00", BERLIN)]
    lengths = []
    for evening in ("2026-03-28 22:00", "2026-06-01 22:00", "2026-10-24 22:00"):
        begin = moment(evening, BERLIN)
        ends = quiet_until(hours, begin)
        assert ends is not None
        lengths.append((ends - begin) / 3600)
    assert lengths == [8, 9, 10]


times = st.builds(time, st.integers(0, 23), st.integers(0, 59))
moments = st.integers(1_704_067_200_000, 1_830_297_600_000).map(lambda milliseconds: milliseconds / 1000)
"""From 2024 to 2027."""


def _different(hours: tuple[time, time]) -> bool:
    return hours[0] != hours[1]


pairs = st.tuples(times, times).filter(_different)


@given(
    pair=pairs,
    zone=st.sampled_from(ZONES),
    days=st.lists(st.sampled_from(DAYS), min_size=1, max_size=6, unique=True),
    at=moments,
)
def test_when_quiet_hours_end_it_is_not_quiet_and_until_then_it_is(
    pair: tuple[time, time], zone: str, days: list[str], at: float
) -> None:
    hours = [QuietHours.model_validate({"start": pair[0], "end": pair[1], "time_zone": zone, "days": days})]
    ends = quiet_until(hours, at)
    if ends is None:
        return
    assert ends > at
    assert quiet_until(hours, ends) is None
    for step in range(8):
        between = at + (ends - at) * step / 8
        assert quiet_until(hours, between) == ends


@given(pair=pairs, at=moments)
def test_where_clocks_never_change_quiet_is_what_the_clock_says(pair: tuple[time, time], at: float) -> None:
    start, end = pair
    now = datetime.fromtimestamp(at, UTC).time()
    inside = start <= now < end if start < end else now >= start or now < end
    assert (QuietHours(start=start, end=end, time_zone="UTC").ends(at) is not None) == inside


@given(day=st.dates(date(2024, 1, 2), date(2027, 12, 30)), zone=st.sampled_from(ZONES), pair=pairs)
def test_quiet_hours_last_as_long_as_the_clock_says_give_or_take_an_hour(
    day: date, zone: str, pair: tuple[time, time]
) -> None:
    hours = QuietHours(start=pair[0], end=pair[1], time_zone=zone)
    begin, end = hours._on(day)
    on_the_wall = datetime.combine(day, pair[1]) - datetime.combine(day, pair[0])
    expected = on_the_wall % timedelta(days=1)
    assert abs(end - begin - expected.total_seconds()) <= 3600


def _at_night(level: str = "warning", **more: object) -> list[Order]:
    night = {"start": "22:00", "end": "07:00", "time_zone": "UTC", **more}
    return book({}, quiet_hours=[night]).decide(event(level=level), moment("2026-01-15 23:00"))


def test_at_night_messages_wait_for_the_morning() -> None:
    [order] = _at_night()
    assert order.due == moment("2026-01-16 07:00")


def test_at_night_messages_can_be_dropped() -> None:
    assert _at_night(mode="drop") == []


def test_at_night_messages_can_come_without_a_sound() -> None:
    [order] = _at_night(mode="silent")
    assert (order.due, order.sound) == (moment("2026-01-15 23:00"), False)


def test_errors_wake_people_unless_they_do_not_want_that() -> None:
    [order] = _at_night("error")
    assert order.due == moment("2026-01-15 23:00")
    [order] = _at_night("error", let_through="nothing")
    assert order.due == moment("2026-01-16 07:00")


def test_a_rule_can_do_without_quiet_hours() -> None:
    night = {"start": "22:00", "end": "07:00", "time_zone": "UTC"}
    rules = book({"quiet_hours": False}, quiet_hours=[night])
    now = moment("2026-01-15 23:00")
    assert [order.due for order in rules.decide(event(level="info"), now)] == [now]


def test_quiet_hours_follow_the_machine_when_they_name_no_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time as clock

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    clock.tzset()
    try:
        tokyo = moment("2026-01-15 23:00", "Asia/Tokyo")
        assert quiet("22:00", "07:00", None).ends(tokyo) == tokyo + 8 * 3600
    finally:
        monkeypatch.undo()
        clock.tzset()


def test_times_can_be_written_as_toml_has_them() -> None:
    assert quiet(time(22, 30), "07:00") == quiet("22:30", "07:00")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        ({"start": "22:00", "end": "22:00"}, "start and end are the same"),
        ({"start": "25:00", "end": "07:00"}, "HH:MM"),
        ({"start": 22, "end": "07:00"}, "HH:MM"),
        ({"start": time(22, 30, 15), "end": "07:00"}, "HH:MM"),
        ({"start": "22:00", "end": "07:00", "time_zone": "Berlin"}, "Europe/Berlin"),
        ({"start": "22:00", "end": "07:00", "time_zone": "../../etc/passwd"}, "is no time zone"),
        ({"start": "22:00", "end": "07:00", "days": []}, "at least 1"),
    ],
)
def test_impossible_quiet_hours_are_refused(hours: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        QuietHours.model_validate(hours)
