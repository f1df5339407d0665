"""What a score is made of: formulas against values worked out by hand, and what holds for any answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jackfield.hooks import Outcome, TokenEvent
from jackfield_confidence.factors import NAMES, Tokens, around, factors, repetition, weakest
from jackfield_confidence.question import Question
from jackfield_confidence.weights import DEFAULT

WHICH = Question(frozenset({"what", "is", "the", "capital", "of", "peru"}))
STOP = Outcome(0, "stop", "stop", 12)


def events(*probabilities: float) -> list[TokenEvent]:
    return [TokenEvent(number, math.log(p)) for number, p in enumerate(probabilities)]


def found(tokens: list[TokenEvent], text: str = "Lima", outcome: Outcome = STOP, question: Question = WHICH):
    said = Tokens.of(tokens, outcome.ended_by)
    assert said is not None
    return factors(said, text, outcome, question)


def test_the_least_likely_third_counts_for_the_weakest():
    logprobs = Tokens.of(events(0.9, 0.2, 0.8, 0.4, 0.7), "length").logprobs
    assert weakest(logprobs) == pytest.approx((0.2 + 0.4) / 2)  # two of five: a third, rounded up


def test_the_token_that_ends_the_answer_is_a_factor_of_its_own():
    factors = found(events(0.9, 0.5, 0.25))
    assert factors["ending"] == pytest.approx(math.log(0.25), abs=1e-4)
    assert factors["weakest"] == pytest.approx(0.5)


def test_an_end_that_is_very_unlikely_counts_no_less_than_minus_3():
    assert found(events(0.9, 0.001))["ending"] == -3


@pytest.mark.parametrize("by", ["length", "stop_string", "tool_call", "timeout", "error"])
def test_answers_that_something_else_ended_have_a_usual_end(by):
    factors = found(events(0.9, 0.5, 0.25), outcome=Outcome(0, "length", by, 12))
    assert factors["ending"] == -0.3
    assert factors["weakest"] == pytest.approx(0.25)


def test_news_are_looked_for_where_the_answer_first_says_something_new():
    likely = [0.99] * 8 + [0.1] + [0.99]
    text = "The capital of Peru is the old city of Lima."
    place = WHICH.first_new(text)
    assert place == text.index("old") / len(text)
    logprobs = Tokens.of(events(*likely), "length").logprobs
    assert around(logprobs, place) == pytest.approx(math.log(0.1))
    assert around(logprobs, 0.0) == pytest.approx(math.log(0.99))
    assert around(logprobs, 0.999) == pytest.approx(math.log(0.1))


def test_an_answer_that_only_repeats_the_question_is_an_echo():
    assert found(events(0.9, 0.9), "The capital of Peru is Peru.")["echo"] == 1
    assert found(events(0.9, 0.9), "The capital of Peru is Lima.")["echo"] == 0
    assert found(events(0.9, 0.9), "Peru", question=Question())["echo"] == 0


def test_repetition_is_the_share_of_pairs_that_come_again():
    assert repetition([1, 2, 3, 4]) == 0
    assert repetition([1, 2, 1, 2, 1]) == 0.5  # 12 21 12 21
    assert repetition([1]) == 0
    assert repetition([]) == 0


def test_repetition_is_looked_for_at_the_end_so_that_length_alone_is_none():
    ids = [*range(30), *range(30), *range(100, 148)]
    tokens = [TokenEvent(one, -0.1) for one in ids]
    assert found(tokens, outcome=Outcome(0, "length", "length", 12))["repetition"] == 0


def test_what_befell_an_answer_is_shown():
    outcome = Outcome(0, "length", "length", 12, compressed=True, calls=4, repaired_calls=1)
    factors = found(events(0.9), outcome=outcome)
    assert (factors["cut_off"], factors["compressed"], factors["repaired"]) == (1, 1, 0.25)
    assert (found(events(0.9))["cut_off"], found(events(0.9))["repaired"]) == (0, 0)


def test_an_answer_of_nothing_but_its_end_has_factors():
    assert found(events(0.4), "")["weakest"] == pytest.approx(0.4)


@pytest.mark.parametrize("tokens", [[], [TokenEvent(1, None)], [TokenEvent(1, -0.1), TokenEvent(2, None)]])
def test_tokens_that_nobody_scored_have_none(tokens):
    assert Tokens.of(tokens, "stop") is None


def test_the_score_of_a_sure_answer_by_hand():
    factors = found(events(0.95, 0.9, 0.8), "Lima")
    logit = -0.64 + 3.17 * 0.9 + 0.66 * math.log(0.9) + 0.51 * math.log(0.8)
    assert DEFAULT.score(factors) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)


ANY = st.lists(st.one_of(st.floats(-100, 0), st.sampled_from([-math.inf, math.nan])), min_size=1, max_size=80)


@given(ANY, st.text(max_size=40), st.sampled_from(["stop", "length", "stop_string"]))
def test_every_answer_has_finite_factors_and_a_score_from_0_to_1(logprobs, text, by):
    outcome = Outcome(0, "length" if by == "length" else "stop", by, 5)
    factors = found([TokenEvent(n % 7, p) for n, p in enumerate(logprobs)], text, outcome)
    assert tuple(factors) == NAMES
    assert all(math.isfinite(value) for value in factors.values())
    assert 0 <= DEFAULT.score(factors) <= 1


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=40), st.floats(0.1, 1))
def test_no_answer_gains_when_all_its_tokens_are_less_likely(probabilities, share):
    sure = found(events(*probabilities))
    unsure = found(events(*(p * share for p in probabilities)))
    assert DEFAULT.score(unsure) <= DEFAULT.score(sure)


@pytest.mark.parametrize("name", ["repetition", "echo"])
def test_repetition_and_echoes_lower_the_score(name):
    factors = found(events(0.9, 0.9, 0.9))
    assert DEFAULT.score(factors | {name: 1.0}) < DEFAULT.score(factors | {name: 0.0})


def test_length_alone_changes_nothing():
    short, long = (found([TokenEvent(n, -0.2) for n in range(count)]) for count in (10, 4000))
    assert DEFAULT.score(short) == pytest.approx(DEFAULT.score(long))
