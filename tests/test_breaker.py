"""The circuit breaker, with a clock that tests turn."""

import asyncio

import pytest

from jackfield.backends.breaker import Breaker
from jackfield.backends.chunks import SpokenTokens
from jackfield.backends.question import Question
from jackfield.backends.upstream import Upstream
from jackfield.settings.upstreams import UpstreamSettings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, window=30, rest=10, clock=clock, chance=lambda: 0.5)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        attempt = breaker.begin()
        assert attempt is not None
        attempt.failed()


def test_so_many_failures_open_it(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert (breaker.state, breaker.begin(), breaker.seconds) == ("open", None, 11)


def test_old_failures_do_not_count(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 2)
    clock.now += 31
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_one_request_probes(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 11
    assert (breaker.state, breaker.lets_through) == ("half_open", True)
    probe = breaker.begin()
    assert probe is not None
    assert breaker.begin() is None
    probe.succeeded()
    assert breaker.state == "closed"
    fail(breaker, 2)
    assert breaker.state == "closed"


def test_a_probe_that_fails_opens_it_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 11
    fail(breaker)
    assert (breaker.state, breaker.seconds) == ("open", 11)


def test_a_probe_that_is_abandoned_says_nothing(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 11
    probe = breaker.begin()
    assert probe is not None
    probe.abandoned()
    probe.failed()
    assert (breaker.state, breaker.lets_through) == ("half_open", True)


def test_what_began_before_it_opened_says_nothing_new(breaker: Breaker) -> None:
    early = [breaker.begin(), breaker.begin()]
    fail(breaker, 3)
    for attempt, ends in zip(early, ("succeeded", "failed"), strict=True):
        getattr(attempt, ends)()
    assert (breaker.state, breaker.seconds) == ("open", 11)


def test_a_probe_is_over_when_it_is_being_answered(breaker: Breaker, clock: Clock) -> None:
    """However long the answer is, others need not wait for its end; how it ends counts as any other's."""
    fail(breaker, 3)
    clock.now += 11
    probe = breaker.begin()
    assert probe is not None
    probe.spoke()
    assert breaker.state == "closed"
    fail(breaker, 2)
    assert breaker.state == "closed"
    probe.failed()
    assert breaker.state == "open"


def test_who_began_before_it_opened_says_nothing_new(breaker: Breaker) -> None:
    early = breaker.begin()
    assert early is not None
    fail(breaker, 3)
    early.spoke()
    assert breaker.state == "open"


def test_a_probe_that_fails_in_a_way_that_nobody_foresaw_makes_room(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 11
    upstream = Upstream("far", UpstreamSettings(url="http://127.0.0.1:1/v1"), breaker)
    question = Question(upstream, "theirs", SpokenTokens(), {"X-Odd": "é"})
    with pytest.raises(UnicodeEncodeError):
        asyncio.run(question.ask("/tokenize", {}, lambda told: told))
    assert (breaker.state, breaker.lets_through, upstream.waiting) == ("half_open", True, 0)
