"""Fitting: it begins at what is known, learns what the data say, and its quality is measured as the books say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jackfield_confidence.logistic import fit, fit_at, probability, sigmoid
from jackfield_confidence.quality import auroc, brier, calibration_error


def answers(weights: list[float], count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, len(weights) - 1))
    return features, (generator.random(count) < probability(np.array(weights), features)).astype(float)


def test_weights_are_found_where_there_are_enough_answers():
    features, right = answers([0.5, 2.0, -1.0], 20_000)
    found = fit(features, right, np.array([0.0, 1.0, -1.0]))
    assert found.weights == pytest.approx([0.5, 2.0, -1.0], abs=0.1)


def test_few_answers_leave_the_weights_where_they_were():
    features, right = answers([-1.0, 1.0], 60)
    known = np.array([0.0, 1.0])
    near, far = (abs(fit_at(features, right, known, strength)[1] - 1.0) for strength in (1000.0, 1.0))
    assert near < 0.02
    assert near < far


def test_a_slope_never_changes_its_sign():
    features, right = answers([0.0, -2.0, 1.0], 2000)
    weights = fit(features, right, np.array([0.0, 1.0, 1.0])).weights
    assert weights[1] == 0
    assert weights[2] == pytest.approx(1.0, abs=0.5)


def test_a_factor_that_is_always_the_same_keeps_its_weight():
    features, right = answers([0.0, 1.0], 500)
    features = np.column_stack([features, np.zeros(500)])
    assert fit(features, right, np.array([0.0, 1.0, -3.0])).weights[2] == pytest.approx(-3.0)


def test_answers_that_a_factor_tells_apart_perfectly_have_finite_weights():
    features = np.linspace(-1, 1, 100)[:, None]
    weights = fit(features, (features[:, 0] > 0).astype(float), np.array([0.0, 1.0])).weights
    assert np.isfinite(weights).all()
    assert weights[1] > 1


def test_each_answer_is_foretold_by_weights_that_have_not_seen_it():
    features, right = np.zeros((100, 1)), np.array([1.0] * 50 + [0.0] * 50)
    foretold = fit(features, right, np.array([5.0, 1.0])).foretold
    assert foretold == pytest.approx(0.5, abs=0.01)


def test_large_logits_do_not_overflow():
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_auroc_counts_ties_half():
    assert auroc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([0.0, 0.0, 1.0, 1.0])) == 0.875
    assert np.isnan(auroc(np.array([0.1, 0.2]), np.array([1.0, 1.0])))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(pairs):
    good, bad = ([s for s, r in pairs if r is right] for right in (True, False))
    if good and bad:
        won = sum((g > b) + (g == b) / 2 for g in good for b in bad) / (len(good) * len(bad))
        assert auroc(np.array([s for s, _ in pairs]), np.array([float(r) for _, r in pairs])) == pytest.approx(won)


def test_calibration_error_by_hand():
    scores, right = np.array([0.05, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    # In the first bin 0.05 is said and half are right; in the last 0.975, and all are.
    assert calibration_error(scores, right) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def test_brier_by_hand():
    assert brier(np.array([0.5, 1.0]), np.array([1.0, 0.0])) == pytest.approx((0.25 + 1) / 2)
