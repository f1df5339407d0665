"""The default weights do on the starter's answers what the README says."""

from pathlib import Path

import numpy as np
import pytest

from jackfield_confidence.graded import read
from jackfield_confidence.quality import auroc, calibration_error
from jackfield_confidence.weights import DEFAULT, LEARNED

PLUGIN = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def answers():
    return read(PLUGIN / "evaluation" / "starter.jsonl", None).answers


@pytest.fixture(scope="module")
def right(answers) -> np.ndarray:
    return np.array([float(answer.correct) for answer in answers])


def test_scores_are_calibrated_and_tell_right_from_wrong(answers, right):
    scores = np.array([DEFAULT.score(answer.factors) for answer in answers])
    assert auroc(scores, right) > 0.73
    assert calibration_error(scores, right) < 0.04


def test_they_do_so_on_questions_that_they_have_not_seen():
    fresh = read(PLUGIN / "evaluation" / "fresh.jsonl", None).answers
    right = np.array([float(answer.correct) for answer in fresh])
    scores = np.array([DEFAULT.score(answer.factors) for answer in fresh])
    assert (len(right), round(auroc(scores, right), 3)) == (456, 0.719)
    assert round(calibration_error(scores, right), 3) == 0.062


@pytest.mark.parametrize("name", LEARNED)
def test_no_factor_does_as_well_alone(answers, right, name):
    values = np.array([answer.factors[name] for answer in answers]) * np.sign(DEFAULT.slopes[name])
    assert 0.5 < auroc(values, right) < 0.7


def test_the_readme_names_the_weights():
    text = (PLUGIN / "README.md").read_text()
    assert f"exp(-({DEFAULT.intercept:g} +" in text
    for name, weight in DEFAULT.slopes.items():
        assert f"| `{name}` | {weight:g} |" in text
