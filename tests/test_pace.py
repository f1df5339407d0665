"""How long the slices of prompts are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jackfield.engine.pace import PrefillPace


def learned(pace: PrefillPace, tokens_a_second: float, answering: int) -> PrefillPace:
    for _ in range(60):
        tokens = pace.slice(answering, 1)
        pace.sliced(tokens, tokens / tokens_a_second, answering)
    return pace


@pytest.mark.parametrize("rate", [300, 2_000, 20_000])
@pytest.mark.parametrize("step", [0.01, 0.05, 0.4])
def test_a_slice_between_steps_makes_them_no_slower_than_was_asked_for(rate, step):
    pace = PrefillPace(slowdown=2.0, step=step)
    tokens = learned(pace, rate, answering=1).slice(1, 1)
    # Sixteen tokens take as long as one, so they are never cut.
    assert tokens / rate <= max(step, 16 / rate) * 1.01
    assert tokens / rate >= min(step / 2, 2048 / rate)


@pytest.mark.parametrize("rate", [40, 300, 20_000])
def test_a_slice_that_shares_a_step_is_measured_by_what_it_adds(rate):
    pace = PrefillPace(slowdown=2.0, step=0.05)
    for _ in range(60):
        tokens = pace.slice(1, 1, shared=True)
        pace.shared(tokens, 0.05 + tokens / rate)
    assert pace.slice(1, 1, shared=True) / rate <= max(0.05, 4 / rate) * 1.01
    assert pace.slice(1, 1, shared=True) >= min(rate * 0.025, 1024)


def test_a_lone_prompt_is_processed_in_long_slices_and_in_shorter_ones_when_others_wait():
    pace = learned(PrefillPace(alone=1.0, in_line=0.25), 1000, answering=0)
    assert 512 <= pace.slice(0, 1) <= 1000
    assert 128 <= pace.slice(0, 2) <= 250


def test_a_device_that_becomes_slower_gets_shorter_slices():
    pace = learned(PrefillPace(), 20_000, answering=1)
    before = pace.slice(1, 1)
    assert learned(pace, 1_000, answering=1).slice(1, 1) < before / 4


def test_the_rate_without_company_never_raises_that_in_company_by_itself():
    pace = PrefillPace(slow_rate=500)
    learned(pace, 50_000, answering=0)
    assert pace.slow_rate == 500


def test_slower_steps_leave_more_time_for_prompts():
    pace = PrefillPace(step=0.01)
    before = pace.slice(4, 1)
    for _ in range(30):
        pace.stepped(0.2)
    assert pace.slice(4, 1) > before


@given(st.floats(1, 1e6), st.floats(1e-4, 10), st.integers(0, 3), st.integers(1, 4))
def test_slices_are_never_empty_nor_longer_than_allowed(rate, step, answering, reading):
    pace = PrefillPace(rate=rate, slow_rate=rate, step=step)
    assert pace.smallest <= pace.slice(answering, reading) <= pace.largest
