"""How factors become a score: a logistic regression, with one weight for each."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jackfield_confidence.factors import NAMES
from jackfield_confidence.logistic import Floats, probability

FITTED_ON = "starter"
"""The model whose answers the default weights were fitted to."""
LEARNED = ("weakest", "news", "ending", "repetition", "echo")
"""Factors with a weight of their own by default. The others have not proved to help with the starter's answers: they
are shown, and `jackfield confidence calibrate` gives them a weight if they do for another model."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The log odds of being right, for factors that are all 0, and how much each of them adds."""

    intercept: float
    slopes: Mapping[str, float]

    def score(self, factors: Mapping[str, float]) -> float:
        """The chance that an answer with these factors is right."""
        return float(probability(self.vector(), np.array([[factors[name] for name in NAMES]]))[0])

    def vector(self) -> Floats:
        """The intercept, and the slopes in the order of `NAMES`."""
        return np.array([self.intercept, *(self.slopes.get(name, 0.0) for name in NAMES)])

    @classmethod
    def of(cls, vector: Floats) -> "Weights":
        """The other way round."""
        return cls(float(vector[0]), {name: float(slope) for name, slope in zip(NAMES, vector[1:], strict=True)})


DEFAULT = Weights(
    intercept=-0.64,
    slopes={"weakest": 3.17, "news": 0.66, "ending": 0.51, "repetition": -3.05, "echo": -3.54},
)
"""Fitted by evaluation/compare.py to what the starter answered to 1402 short questions."""
