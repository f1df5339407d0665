"""Weights for one model, fitted to answers of it that somebody has graded."""

from datetime import UTC, datetime
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from jackfield.errors import InvalidRequestError
from jackfield_confidence.factors import NAMES
from jackfield_confidence.graded import GradedAnswer
from jackfield_confidence.logistic import Floats, fit, log_loss, probability
from jackfield_confidence.quality import auroc, brier, calibration_error
from jackfield_confidence.weights import DEFAULT, Weights

LEAST_ANSWERS = 50
LEAST_OF_EACH = 15
"""Right answers and wrong ones: fewer say nothing about how they differ."""


class Quality(BaseModel):
    """How good scores are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    auroc: FiniteFloat
    """The chance that a right answer scores higher than a wrong one."""
    calibration_error: FiniteFloat
    """How far scores are from the share of right answers."""
    brier: FiniteFloat
    log_loss: FiniteFloat

    @classmethod
    def of(cls, scores: Floats, right: Floats) -> "Quality":
        """Of scores, where it is known which answers were right."""
        measured = {"auroc": auroc, "calibration_error": calibration_error, "brier": brier, "log_loss": log_loss}
        return cls(**{name: round(measure(scores, right), 4) for name, measure in measured.items()})


class Calibration(BaseModel):
    """What is stored for a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)]
    fitted: datetime
    answers: int
    right: int
    intercept: FiniteFloat
    slopes: dict[str, FiniteFloat]
    before: Quality
    """Of the default weights."""
    after: Quality
    """Of weights that were fitted in the same way, each answer scored by some that have not seen it."""

    @field_validator("slopes")
    @classmethod
    def _of_all_factors(cls, slopes: dict[str, float]) -> dict[str, float]:
        if set(slopes) != set(NAMES):
            raise ValueError(f"there has to be one for each of: {', '.join(NAMES)}")
        return slopes

    @property
    def weights(self) -> Weights:
        """To score answers with."""
        return Weights(self.intercept, self.slopes)


def calibrate(model: str, answers: list[GradedAnswer]) -> Calibration:
    """Fit weights to graded answers; with few of them they stay near the default.

    Raises:
        InvalidRequestError: there are too few answers, or they lack factors.
    """
    features = np.array([_row(number, answer) for number, answer in enumerate(answers, 1)])
    right = np.array([float(answer.correct) for answer in answers])
    _require_enough(right)
    default = DEFAULT.vector()
    found = fit(features, right, default)
    weights = Weights.of(np.round(found.weights, 6))
    return Calibration(
        model=model,
        fitted=datetime.now(UTC).replace(microsecond=0),
        answers=len(answers),
        right=int(right.sum()),
        intercept=weights.intercept,
        slopes=dict(weights.slopes),
        before=Quality.of(probability(default, features), right),
        after=Quality.of(found.foretold, right),
    )


def _row(number: int, answer: GradedAnswer) -> list[float]:
    if missing := [name for name in NAMES if name not in answer.factors]:
        raise InvalidRequestError(
            f"Answer {number} has no factor {missing[0]!r}.",
            suggestions=(
                "Save the factors as the server gives them: jackfield.choices[i].confidence.confidence.factors.",
            ),
        )
    return [answer.factors[name] for name in NAMES]


def _require_enough(right: Floats) -> None:
    good, bad = int(right.sum()), int((1 - right).sum())
    if good + bad >= LEAST_ANSWERS and min(good, bad) >= LEAST_OF_EACH:
        return
    raise InvalidRequestError(
        f"{good} right and {bad} wrong answers are too few to learn from.",
        suggestions=(
            f"Grade at least {LEAST_ANSWERS} answers, {LEAST_OF_EACH} right and {LEAST_OF_EACH} wrong ones among them.",
            "Ask easier or harder questions if nearly all answers are right or wrong.",
        ),
    )
