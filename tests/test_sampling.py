"""Sampling: the right distribution, each row for itself, the same seed the same token."""

import collections
import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jackfield.engine.request import SamplingParameters
from jackfield.engine.sampling import Adjustments, Sampler, uniform

LOGITS = [2.0, 1.5, 1.0, 0.0, -1.0, -1.5]
DRAWS = 4000


def probabilities(parameters: SamplingParameters) -> list[float]:
    """What the rules say, one after the other, in plain Python."""
    scaled = [logit / parameters.temperature for logit in LOGITS]
    ranked = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if parameters.top_k:
        ranked = ranked[: parameters.top_k]
    weights = {i: math.exp(scaled[i]) for i in ranked}
    total = sum(weights.values())
    kept, mass = {}, 0.0
    for i in ranked:
        share = weights[i] / total
        if mass < parameters.top_p and share >= parameters.min_p * weights[ranked[0]] / total:
            kept[i] = weights[i]
        mass += share
    total = sum(kept.values())
    return [kept.get(i, 0.0) / total for i in range(len(LOGITS))]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"temperature": 0.7, "top_k": 4, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(parameters):
    rows = [SamplingParameters(**parameters, seed=seed) for seed in range(DRAWS)]
    tokens = Sampler(rows)(mx.array([LOGITS] * DRAWS), [0] * DRAWS).tolist()
    counted = collections.Counter(tokens)
    for token, probability in enumerate(probabilities(SamplingParameters(**parameters))):
        # Five standard deviations: one run in a million fails by chance, and the draws are fixed anyway.
        tolerance = 5 * math.sqrt(probability * (1 - probability) / DRAWS)
        assert abs(counted[token] / DRAWS - probability) <= tolerance, token


PARAMETERS = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 1000]),
    top_p=st.sampled_from([0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.2]),
    seed=st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PARAMETERS, st.integers(0, 100)), min_size=1, max_size=9), st.integers(0, 2**16))
def test_a_row_gets_the_same_token_whatever_else_is_in_the_batch(rows, seed):
    logits = mx.array(np.random.default_rng(seed).normal(size=(len(rows), 50)).astype(np.float32))
    together = Sampler([p for p, _ in rows])(logits, [position for _, position in rows]).tolist()
    alone = [Sampler([p])(logits[i : i + 1], [position]).item() for i, (p, position) in enumerate(rows)]
    assert together == alone


def test_draws_are_uniform_and_differ_by_seed_and_position():
    draws = [uniform(seed, position) for seed in range(100) for position in range(100)]
    # 24 bits: of 10,000 draws a few coincide by chance.
    assert len(set(draws)) > 9_980
    histogram, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert np.all(np.abs(histogram - 500) < 5 * math.sqrt(500))
    assert min(draws) >= 0
    assert max(draws) < 1


def test_zero_probability_tokens_are_never_chosen():
    logits = mx.array([[-math.inf, 0.0, -math.inf]] * 200)
    assert set(Sampler([SamplingParameters(seed=s) for s in range(200)])(logits, [0] * 200).tolist()) == {1}


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-9])
def test_temperatures_next_to_zero_are_greedy(temperature):
    rows = [SamplingParameters(temperature=temperature, seed=seed) for seed in range(10)]
    assert set(Sampler(rows)(mx.array([LOGITS] * 10), [0] * 10).tolist()) == {0}


def adjusted(parameters: SamplingParameters, prompt: list[int], answer: list[int], logits: list[float]) -> list[float]:
    adjustments = Adjustments(len(logits))
    adjustments.add(0, parameters, prompt)
    for token in answer:
        adjustments.follow([token])
    return adjustments(mx.array([logits]))[0].tolist()


def test_frequency_penalty_counts_each_time_in_the_answer_and_presence_penalty_once():
    parameters = SamplingParameters(frequency_penalty=0.5, presence_penalty=0.25)
    assert adjusted(parameters, [3], [1, 2, 1], [1.0] * 4) == [1.0, 1.0 - 2 * 0.5 - 0.25, 1.0 - 0.5 - 0.25, 1.0]


def test_repetition_penalty_weakens_what_stands_in_prompt_or_answer():
    parameters = SamplingParameters(repetition_penalty=2.0)
    assert adjusted(parameters, [0], [1], [1.0, -1.0, 1.0]) == [0.5, -2.0, 1.0]


def test_logit_bias_is_added():
    assert adjusted(SamplingParameters(logit_bias={1: 5.0, 2: -100.0}), [0], [], [0.0] * 3) == [0.0, 5.0, -100.0]


def test_adjustments_stay_with_their_rows_when_others_leave():
    adjustments = Adjustments(3)
    adjustments.add(0, SamplingParameters(logit_bias={0: 1.0}), [0])
    adjustments.add(1, SamplingParameters(), [0])
    adjustments.add(2, SamplingParameters(frequency_penalty=1.0), [0])
    adjustments.follow([None, 1, 2])
    adjustments.keep([1, 2])
    adjustments.follow([2, 2])
    assert adjustments(mx.zeros((2, 3))).tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, -2.0]]
    adjustments.keep([0])
    assert adjustments(mx.zeros((1, 3))).tolist() == [[0.0, 0.0, 0.0]]
