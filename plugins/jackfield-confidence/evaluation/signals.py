"""Single signals from the literature, to compare the score with: each a number about an answer, higher for more sure.

Logarithms are natural. H is a token's entropy, p_1 >= p_2 >= ... the probabilities of the most likely tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
VOCABULARY = 49152
"""The starter's."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was written down of one answer's tokens, without the one that ended it."""

    ids: list[int]
    logprobs: Floats
    top: Floats
    """Log probabilities of the 20 most likely tokens, best first; [tokens, 20]."""
    entropy: Floats
    certainty: Floats
    """Self-certainty: the Kullback-Leibler divergence of the distribution from a uniform one."""
    end: float | None
    """Log probability of the token that ended the answer."""

    @classmethod
    def of(cls, line: Mapping[str, list[float] | list[list[float]] | str]) -> "Record":
        """From a line that `generate.py` wrote."""
        ended = line["finish"] == "stop"
        said = max(len(line["ids"]) - ended, 1)
        shape = np.array(line["shape"])[:said]
        return cls(
            list(line["ids"])[:said],
            np.array(line["logprob"])[:said],
            np.array(line["top"])[:said],
            shape[:, 0],
            -shape[:, 1] - math.log(VOCABULARY),
            float(line["logprob"][-1]) if ended else None,
        )


def lowest_window(values: Floats, width: int) -> float:
    """The lowest mean of ``width`` neighbours."""
    if len(values) <= width:
        return float(values.mean())
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return float(((sums[width:] - sums[:-width]) / width).min())


def lowest_share(values: Floats, share: float) -> float:
    """The mean of the lowest ones."""
    return float(np.sort(values)[: math.ceil(share * len(values))].mean())


def margin(record: Record) -> Floats:
    """p_1 - p_2 of each token."""
    return np.exp(record.top[:, 0]) - np.exp(record.top[:, 1])


def confidence(record: Record) -> Floats:
    """DeepConf's token confidence: minus the mean log probability of the k most likely tokens, k = 20."""
    return -record.top.mean(axis=1)


def contribution(record: Record) -> float:
    """The mean of what the fourth most likely token adds to the entropy, as in WEPR, less is better."""
    fourth = record.top[:, 3]
    return float((np.exp(fourth) * fourth).mean())


def repeated(record: Record) -> float:
    """Minus the share of pairs of neighbouring tokens that have been there before."""
    pairs = list(zip(record.ids, record.ids[1:], strict=False))
    return len(set(pairs)) / len(pairs) - 1 if pairs else 0.0


SIGNALS: dict[str, tuple[str, Callable[[Record], float]]] = {
    "mean log probability (perplexity)": ("Malinin and Gales, arXiv:2002.07650", lambda r: float(r.logprobs.mean())),
    "sum of log probabilities": ("G-NLL, arXiv:2412.15176", lambda r: float(r.logprobs.sum())),
    "lowest log probability": ("arXiv:2405.19648", lambda r: float(r.logprobs.min())),
    "worst 4 tokens in a row, log probability": ("", lambda r: lowest_window(r.logprobs, 4)),
    "worst 8 tokens in a row, log probability": ("", lambda r: lowest_window(r.logprobs, 8)),
    "least likely tenth, probability": ("", lambda r: float(np.quantile(np.exp(r.logprobs), 0.1))),
    "least likely fifth, log probability": ("", lambda r: lowest_share(r.logprobs, 0.2)),
    "least likely third, probability": ("", lambda r: lowest_share(np.exp(r.logprobs), 1 / 3)),
    "mean entropy": ("arXiv:2002.07650", lambda r: -float(r.entropy.mean())),
    "highest entropy": ("", lambda r: -float(r.entropy.max())),
    "worst 4 tokens in a row, entropy": ("", lambda r: lowest_window(-r.entropy, 4)),
    "entropy of the first token": ("arXiv:2605.05166", lambda r: -float(r.entropy[0])),
    "mean top-2 margin": ("", lambda r: float(margin(r).mean())),
    "lowest top-2 margin": ("", lambda r: float(margin(r).min())),
    "mean token confidence": ("DeepConf, arXiv:2508.15260", lambda r: float(confidence(r).mean())),
    "lowest group confidence, 8 tokens": ("DeepConf", lambda r: lowest_window(confidence(r), 8)),
    "bottom 10 % token confidence": ("DeepConf", lambda r: lowest_share(confidence(r), 0.1)),
    "tail confidence, last 8 tokens": ("DeepConf", lambda r: float(confidence(r)[-8:].mean())),
    "self-certainty": ("arXiv:2502.18581", lambda r: float(r.certainty.mean())),
    "fourth token's share of the entropy": ("WEPR, arXiv:2509.04492", contribution),
    "log probability of the end": ("", lambda r: -0.3 if r.end is None else r.end),
    "length": ("", lambda r: -float(len(r.ids))),
    "not cut off": ("", lambda r: float(r.end is not None)),
    "no repetition": ("", repeated),
}
"""By name: where the formula is from, unless it is elementary, and the formula."""
