"""What a score is made of: a few numbers about an answer's tokens, each with a name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jackfield.hooks import Outcome, TokenEvent
from jackfield_confidence.logistic import Floats
from jackfield_confidence.question import Question

AROUND_NEWS = 4
"""Tokens in which the first new word is, as far as that can be told: its place in the text, taken as its place among
the tokens, may be off by one or two."""
RECENT = 48
"""Tokens at an answer's end in which repetition is looked for: over many more, any text repeats itself."""
FLOOR = -20.0
"""The lowest log probability that counts."""
LOWEST_END, USUAL_END = -3.0, -0.3
"""Of the token that ends an answer; the usual one stands for answers that were ended otherwise."""

NAMES = ("weakest", "news", "ending", "repetition", "echo", "cut_off", "compressed", "repaired")
"""Of all factors, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """An answer's tokens, without the one that ended it."""

    ids: tuple[int, ...]
    logprobs: Floats
    """Natural, of each token."""
    end: float | None = None
    """The log probability of the token that ended the answer; None if something else did."""

    @classmethod
    def of(cls, tokens: Sequence[TokenEvent], ended_by: str) -> "Tokens | None":
        """What is known of them; None if there are none, or nobody has scored them."""
        if not tokens or any(token.logprob is None for token in tokens):
            return None
        logprobs = _finite([token.logprob for token in tokens])
        ended = ended_by == "stop"
        # An answer without words has nothing but its end.
        said = len(tokens) - 1 if ended and len(tokens) > 1 else len(tokens)
        return cls(
            tuple(token.id for token in tokens[:said]),
            logprobs[:said],
            float(logprobs[-1]) if ended else None,
        )


def factors(tokens: Tokens, text: str, outcome: Outcome, question: Question) -> dict[str, float]:
    """All factors of an answer, by name.

    Args:
        tokens: the answer's.
        text: what they say.
        outcome: how the answer ended.
        question: what it answers.
    """
    new = question.first_new(text)
    found = {
        "weakest": weakest(tokens.logprobs),
        "news": around(tokens.logprobs, new or 0.0),
        "ending": USUAL_END if tokens.end is None else max(tokens.end, LOWEST_END),
        "repetition": repetition(tokens.ids[-RECENT:]),
        "echo": float(new is None),
        "cut_off": float(outcome.finish_reason == "length"),
        "compressed": float(outcome.compressed),
        "repaired": outcome.repaired_calls / outcome.calls if outcome.calls else 0.0,
    }
    return {name: round(found[name], 4) for name in NAMES}


def weakest(logprobs: Floats) -> float:
    """The mean probability of the least likely third of all tokens."""
    return float(np.exp(np.sort(logprobs)[: math.ceil(len(logprobs) / 3)]).mean())


def around(logprobs: Floats, place: float) -> float:
    """The lowest log probability around a place in the answer, which goes from 0 to 1."""
    first = max(0, int(place * len(logprobs)) - 1)
    return float(logprobs[first : first + AROUND_NEWS].min())


def repetition(ids: Sequence[int]) -> float:
    """The share of pairs of neighbouring tokens that have been there before."""
    pairs = list(pairwise(ids))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _finite(logprobs: Sequence[float | None]) -> Floats:
    """As numbers between `FLOOR` and 0."""
    values = np.array(logprobs, dtype=np.float64)
    return np.clip(np.nan_to_num(values, nan=FLOOR, neginf=FLOOR), FLOOR, 0.0)
