# ruff: noqa: D103, S311, T201
"""Compare single signals with the score, and fit the score's default weights.

python evaluation/compare.py answers.jsonl.gz                  the tables
python evaluation/compare.py answers.jsonl.gz --fit            the default weights, from all answers
python evaluation/compare.py answers.jsonl.gz --write FILE     their factors, to calibrate with
python evaluation/compare.py fresh.jsonl.gz --shipped          the default weights as they are, on new answers

In the tables each answer is scored by weights that were fitted without it: without all questions of its kind, or
without a fifth of the questions, of all kinds. Signals have no weights, so their area under the curve is what it is;
for their calibration error a logistic regression, fitted in the same way, turns them into probabilities.
"""

import argparse
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from questions import FRESH_KINDS
from signals import SIGNALS, Record
from sklearn.linear_model import LogisticRegression

from jackfield.hooks import Outcome, TokenEvent
from jackfield_confidence.factors import Tokens, factors
from jackfield_confidence.graded import read as graded
from jackfield_confidence.quality import auroc, brier, calibration_error
from jackfield_confidence.question import Question
from jackfield_confidence.settings import Settings
from jackfield_confidence.weights import DEFAULT, LEARNED

Floats = NDArray[np.float64]
SEED = 1
RIDGE = 3.0
"""The penalty on squared weights of standardised factors."""
RESAMPLES = 1000
SCORE = "the score"
BEFORE = "least likely third, probability"
"""The best signal on the answers of the default weights, so the one to beat on others."""
HEADER = "| signal | AUROC | 95 % | within kinds | ECE | Brier |\n|---|---|---|---|---|---|"
FOLDS = 5


@dataclass
class Data:
    """All answers, in a fixed order."""

    lines: list[dict[str, Any]]
    right: Floats
    kind: NDArray[np.str_]
    question: NDArray[np.int64]
    """A fold for each, the same for all answers to a question."""
    factors: list[dict[str, float]]
    signals: dict[str, Floats]

    def matrix(self, names: tuple[str, ...]) -> Floats:
        """[answers, factors]."""
        return np.array([[one[name] for name in names] for one in self.factors])


# --- Reading ---------------------------------------------------------------------------------------------------------


def read(file: Path) -> Data:
    with gzip.open(file, "rt") as rows:
        lines = sorted(map(json.loads, rows), key=lambda line: (line["kind"], line["question"], line["style"]))
    records = [Record.of(line) for line in lines]
    return Data(
        lines,
        np.array([float(line["correct"]) for line in lines]),
        np.array([line["kind"] for line in lines]),
        _folds(lines),
        [factors_of(line) for line in lines],
        {name: np.array([signal(record) for record in records]) for name, (_, signal) in SIGNALS.items()},
    )


def _folds(lines: list[dict[str, Any]]) -> NDArray[np.int64]:
    asked = sorted({(line["kind"], line["question"]) for line in lines})
    random.Random(SEED).shuffle(asked)
    fold = {question: number % FOLDS for number, question in enumerate(asked)}
    return np.array([fold[line["kind"], line["question"]] for line in lines])


def factors_of(line: dict[str, Any]) -> dict[str, float]:
    """As the server computes them."""
    events = [TokenEvent(token, logprob) for token, logprob in zip(line["ids"], line["logprob"], strict=True)]
    tokens = Tokens.of(events, line["finish"])
    assert tokens is not None  # noqa: S101
    outcome = Outcome(0, line["finish"], line["finish"], 0)
    question = Question.of({"messages": [{"role": "user", "content": line["question"]}]}, 40)
    return factors(tokens, line["text"], outcome, question)


# --- Fitting ---------------------------------------------------------------------------------------------------------


def fitted(features: Floats, right: Floats, ridge: float = RIDGE) -> tuple[float, Floats]:
    """Intercept and slopes, of factors as they are."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    model = LogisticRegression(C=1 / ridge, max_iter=1000).fit((features - mean) / spread, right)
    slopes = model.coef_[0] / spread
    return float(model.intercept_[0] - slopes @ mean), slopes


def probabilities(weights: tuple[float, Floats], features: Floats) -> Floats:
    intercept, slopes = weights
    return 1 / (1 + np.exp(-(intercept + features @ slopes)))


def without_its_own(data: Data, features: Floats, groups: NDArray[Any]) -> Floats:
    """For each answer what weights say that were fitted without its group."""
    scores = np.empty(len(data.right))
    for group in set(groups.tolist()):
        out = groups == group
        scores[out] = probabilities(fitted(features[~out], data.right[~out]), features[out])
    return scores


# --- Tables ----------------------------------------------------------------------------------------------------------


def resamples(count: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(SEED)
    return (generator.integers(0, count, count) for _ in range(RESAMPLES))


def interval(right: Floats, measure: Callable[[NDArray[np.int64]], float]) -> str:
    """The middle 95 % of what ``measure`` says of resampled answers."""
    found = [measure(rows) for rows in resamples(len(right)) if 0 < right[rows].sum() < len(rows)]
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{low:+.3f} to {high:+.3f}" if low < 0 or high < 0.4 else f"{low:.2f} to {high:.2f}"


def table(data: Data, scored: dict[str, Floats], chosen: NDArray[np.bool_], title: str) -> None:
    """All signals and the score by area under the curve, best first, and how far the score is ahead of the best."""
    right = data.right[chosen]
    # Signals are compared as they are, since weights fitted here and there would blur their order.
    ranks = {name: data.signals.get(name, values)[chosen] for name, values in scored.items()}
    areas = {name: auroc(values, right) for name, values in ranks.items()}
    print(f"\n{title}: {len(right)} answers, {right.mean():.0%} right\n\n{HEADER}")
    for name in sorted(areas, key=lambda name: -areas[name]):
        middle = interval(right, lambda rows: auroc(ranks[name][rows], right[rows]))  # noqa: B023
        values = scored[name][chosen]
        quality = f"{calibration_error(values, right):.3f} | {brier(values, right):.3f}"
        print(f"| {name} | {areas[name]:.3f} | {middle} | {within(data, ranks[name], chosen):.3f} | {quality} |")
    best = max(data.signals, key=areas.__getitem__)
    lead(ranks, right, best, "best signal here")
    lead(ranks, right, BEFORE, "signal chosen before")


def lead(ranks: dict[str, Floats], right: Floats, name: str, what: str) -> None:
    """How far the score is ahead of a signal on the same answers."""
    ours, theirs = ranks[SCORE], ranks[name]
    ahead = interval(right, lambda rows: auroc(ours[rows], right[rows]) - auroc(theirs[rows], right[rows]))
    print(f"\nThe score is ahead of the {what} ({name}) by {auroc(ours, right) - auroc(theirs, right):.3f} ({ahead}).")


def within(data: Data, values: Floats, chosen: NDArray[np.bool_]) -> float:
    """The mean area under the curve of kinds that have at least three right and three wrong answers."""
    right, kind = data.right[chosen], data.kind[chosen]
    kinds = [kind == name for name in sorted(set(kind))]
    return float(np.mean([auroc(values[own], right[own]) for own in kinds if 3 <= right[own].sum() <= own.sum() - 3]))


def show(data: Data) -> None:
    everything = np.ones(len(data.right), dtype=bool)
    for title, groups in [("without its kind", data.kind), ("without its question", data.question)]:
        scored = {name: without_its_own(data, values[:, None], groups) for name, values in data.signals.items()}
        scored[SCORE] = without_its_own(data, data.matrix(LEARNED), groups)
        table(data, scored, everything, title)
        for style in sorted({line["style"] for line in data.lines}):
            asked = np.array([line["style"] == style for line in data.lines])
            table(data, scored, asked, f"{title}, style {style}")


def show_shipped(data: Data) -> None:
    """The default weights on answers that are new to them; signals are calibrated on the very answers, to be fair."""
    scored = {name: probabilities(fitted(v[:, None], data.right), v[:, None]) for name, v in data.signals.items()}
    scored[SCORE] = np.array([DEFAULT.score(one) for one in data.factors])
    new = np.isin(data.kind, [kind.__name__ for kind in FRESH_KINDS])
    table(data, scored, np.ones(len(data.right), dtype=bool), "the default weights as they are")
    table(data, scored, ~new, "more questions of the kinds that they were fitted to")
    table(data, scored, new, "other kinds")
    labels(scored[SCORE], data.right)
    without_a_factor(data)


def labels(scores: Floats, right: Floats) -> None:
    """What comes of scores that are called low, medium and high by default."""
    settings = Settings()
    print(f"\nThe mean score is {scores.mean():.3f}, the share of right answers {right.mean():.3f}.")
    label = np.digitize(scores, [settings.low, settings.high])
    for number, name in enumerate(["low", "medium", "high"]):
        print(f"{name}: {(label == number).sum()} answers, {right[label == number].mean():.0%} right")


def without_a_factor(data: Data) -> None:
    """The area under the curve of weights that are fitted to the default weights' answers without one factor."""
    known = graded(Path(__file__).parent / "starter.jsonl", None).answers
    right = np.array([float(answer.correct) for answer in known])
    for left_out in LEARNED:
        names = tuple(name for name in LEARNED if name != left_out)
        weights = fitted(np.array([[answer.factors[name] for name in names] for answer in known]), right)
        scores = probabilities(weights, data.matrix(names))
        everything = np.ones(len(scores), dtype=bool)
        print(f"without {left_out}: {auroc(scores, data.right):.3f}, in kinds {within(data, scores, everything):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--shipped", action="store_true")
    options = parser.parse_args()
    data = read(options.file)
    if options.fit:
        intercept, slopes = fitted(data.matrix(LEARNED), data.right)
        print(f"intercept {intercept:.2f}", *(f"{n} {s:.2f}" for n, s in zip(LEARNED, slopes, strict=True)), sep="\n")
    elif options.write:
        with options.write.open("w") as file:
            for line, one in zip(data.lines, data.factors, strict=True):
                print(json.dumps({"model": "starter", "factors": one, "correct": line["correct"]}), file=file)
    elif options.shipped:
        show_shipped(data)
    else:
        show(data)


if __name__ == "__main__":
    main()
