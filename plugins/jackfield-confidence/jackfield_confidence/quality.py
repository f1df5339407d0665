"""How good scores are, once it is known which answers were right."""

import numpy as np

from jackfield_confidence.logistic import Floats

BINS = 10


def auroc(scores: Floats, right: Floats) -> float:
    """The chance that a right answer has a higher score than a wrong one, ties counting half (Mann and Whitney).

    Not a number where all are right, or none.
    """
    positives, negatives = scores[right > 0], np.sort(scores[right <= 0])
    if not len(positives) or not len(negatives):
        return float("nan")
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))


def calibration_error(scores: Floats, right: Floats) -> float:
    """Expected calibration error: how far scores are from the share of right answers, in ten bins of equal width.

    The mean distance, weighted by the answers in each bin (Guo et al., arXiv:1706.04599).
    """
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = [abs(float((scores - right)[bins == one].sum())) for one in range(BINS)]
    return sum(gaps) / len(scores)


def brier(scores: Floats, right: Floats) -> float:
    """Mean squared distance from 1 for right answers and from 0 for wrong ones (Brier, 1950)."""
    return float(((scores - right) ** 2).mean())
