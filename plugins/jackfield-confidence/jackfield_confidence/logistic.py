"""Logistic regression that begins at weights which are known already, and leaves them only as far as the data say."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FOLDS = 5
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""How firmly to hold on to the known weights: about as many answers as would have to contradict them."""
STEPS = 100
PRECISION = 1e-9
FREE = 1e-6
"""What holds the intercept, next to nothing: how often a model is right has to be learned from it alone."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights, the intercept first, and what cross-validation says of them."""

    weights: Floats
    strength: float
    foretold: Floats
    """For each row the probability that it was given by weights fitted without it."""


def probability(weights: Floats, features: Floats) -> Floats:
    """Of being right, for each row of ``features`` [rows, factors]; ``weights`` are [1 + factors]."""
    return sigmoid(weights[0] + features @ weights[1:])


def sigmoid(logits: Floats) -> Floats:
    """Logits as probabilities, without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def fit(features: Floats, right: Floats, known: Floats) -> Fit:
    """Weights near ``known``, as near as is best by cross-validation; a slope never changes its sign.

    Args:
        features: [rows, factors].
        right: 1 for each answer that was, 0 for the others; [rows].
        known: where to begin; [1 + factors].
    """
    folds = _folds(right)
    tried = [(strength, _foretold(features, right, known, strength, folds)) for strength in STRENGTHS]
    strength, foretold = min(tried, key=lambda one: log_loss(one[1], right))
    return Fit(fit_at(features, right, known, strength), strength, foretold)


def fit_at(features: Floats, right: Floats, known: Floats, strength: float) -> Floats:
    """The same, where it is known how firmly to hold on to ``known``."""
    spread = np.maximum(features.std(axis=0), 1e-3)
    penalty = np.concatenate([[FREE], strength * spread**2])
    free = np.ones(len(known), dtype=bool)
    while True:
        weights = _descend(features, right, known * free, penalty, free)
        turned = free & (weights * known < 0)
        turned[0] = False
        if not turned.any():
            return weights
        free &= ~turned


def log_loss(foretold: Floats, right: Floats) -> float:
    """Mean negative log probability of what came true, in nats."""
    certain = np.clip(np.where(right > 0, foretold, 1 - foretold), 1e-12, 1.0)
    return float(-np.log(certain).mean())


def _folds(right: Floats) -> NDArray[np.int64]:
    """A fold for each row, right and wrong answers spread evenly."""
    order = np.random.default_rng(SEED).permutation(len(right))
    order = order[np.argsort(right[order], kind="stable")]
    folds = np.empty(len(right), dtype=np.int64)
    folds[order] = np.arange(len(right)) % FOLDS
    return folds


def _foretold(features: Floats, right: Floats, known: Floats, strength: float, folds: NDArray[np.int64]) -> Floats:
    foretold = np.empty(len(right))
    for fold in range(FOLDS):
        out = folds == fold
        weights = fit_at(features[~out], right[~out], known, strength)
        foretold[out] = probability(weights, features[out])
    return foretold


def _descend(features: Floats, right: Floats, start: Floats, penalty: Floats, free: NDArray[np.bool_]) -> Floats:
    """Newton's method on the penalised log likelihood of the weights that are free."""
    design = np.column_stack([np.ones(len(features)), features])[:, free]
    weights, anchor, held = start[free], start[free], penalty[free]
    for _ in range(STEPS):
        likely = sigmoid(design @ weights)
        slope = design.T @ (likely - right) + held * (weights - anchor)
        curvature = (design * (likely * (1 - likely))[:, None]).T @ design + np.diag(held)
        step = np.linalg.solve(curvature, slope)
        weights = weights - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < PRECISION:
            break
    found = np.zeros(len(start))
    found[free] = weights
    return found
