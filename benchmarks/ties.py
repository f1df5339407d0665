"""Ties: places in an answer where rounding decides which token comes next.

A model computes the same logits for the same tokens, but for rounding: products of matrices are summed in another
order when other rows are in the batch, or when a prompt is cut into other slices. So two answers to one request may
differ, but only from a place on where two tokens lie as close together as rounding errors are large.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from jackfield.engine.grammar import GrammarMasks
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.engine.runner import Runner
from jackfield.engine.sampling import Adjustments, uniform

ROUNDING = 2e-5
"""Of a cumulative probability: the engine adds up float32 numbers over a whole vocabulary."""

Floats = NDArray[np.float64]
Tokens = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Judge:
    """Works out which tokens may come next in an answer.

    Args:
        runner: the model, which reads the whole sequence in one go, without anybody else.
        tolerance: by how much a logit may be off.
    """

    runner: Runner
    tolerance: float

    def candidates(self, request: GenerationRequest, answer: Sequence[int]) -> Tokens:
        """The tokens that the engine may choose after ``answer``; more than one if that is a tie."""
        sampling = request.sampling
        logits = self._masked(request, answer, self._adjusted(request, answer))
        penalty = max(sampling.repetition_penalty, 1 / sampling.repetition_penalty)
        return candidates(np.array(logits[0], np.float64), sampling, len(answer), self.tolerance * penalty)

    def _adjusted(self, request: GenerationRequest, answer: Sequence[int]) -> mx.array:
        adjustments = Adjustments(self.runner.vocabulary)
        adjustments.add(0, request.sampling, request.prompt, answer)
        return adjustments(self._logits([*request.prompt, *answer]))

    def _logits(self, tokens: Sequence[int]) -> mx.array:
        caches = self.runner.start()
        if len(tokens) > 1:
            self.runner.prefill(caches, tokens[:-1])
        logits: mx.array = self.runner.model(mx.array([tokens[-1:]]), cache=caches)[:, -1]
        return logits.astype(mx.float32)

    def _masked(self, request: GenerationRequest, answer: Sequence[int], logits: mx.array) -> mx.array:
        matcher = request.grammar.start() if request.grammar else None
        for token in answer:
            if matcher is not None:
                matcher.advance(token)
        return GrammarMasks(self.runner.vocabulary, [matcher])(logits)


def candidates(logits: Floats, sampling: SamplingParameters, position: int, tolerance: float) -> Tokens:
    """The tokens that may be chosen at a position of an answer, when each logit may be off by ``tolerance``.

    Worked out in float64 and apart from the engine's sampler, from what its rules say.
    """
    if sampling.temperature < 1e-5 or sampling.top_k == 1:
        return np.flatnonzero(logits >= logits.max() - 2 * tolerance)
    scaled = (logits - logits.max()) / sampling.temperature
    # How far two logits may move apart.
    spread = 2 * tolerance / sampling.temperature
    sure, possible = _kept(scaled, sampling, spread)
    return _drawn(np.exp(scaled), sure, possible, uniform(sampling.seed, position), spread)


def _drawn(weights: Floats, sure: Mask, possible: Mask, draw: float, spread: float) -> Tokens:
    """Tokens at which the cumulative probability may pass the draw, given which tokens are in the distribution."""
    least, most = np.cumsum(weights * sure), np.cumsum(weights * possible)
    below, beyond = least - weights * sure, least[-1] - least
    lowest = _share(below, most[-1] - most + weights * possible, -spread)
    highest = _share(most, beyond, spread)
    return np.flatnonzero(possible & (lowest - ROUNDING <= draw) & (draw <= highest + ROUNDING))


def _share(part: Floats, rest: Any, shift: float) -> Floats:
    """The share of ``part``, when its weights grow by e^shift against the rest."""
    grown = part * np.exp(shift)
    whole = grown + rest
    shares: Floats = np.divide(grown, whole, out=np.ones_like(grown), where=whole > 0)
    return shares


def _kept(scaled: Floats, sampling: SamplingParameters, spread: float) -> tuple[Mask, Mask]:
    """The tokens that top-k, top-p and min-p leave in any case, and those that they may leave."""
    sure = possible = np.isfinite(scaled)
    if 0 < sampling.top_k < len(scaled):
        following, last = np.partition(scaled, [-sampling.top_k - 1, -sampling.top_k])[-sampling.top_k - 1 :][:2]
        sure, possible = sure & (scaled > following + spread), possible & (scaled >= last - spread)
    # Top-p and min-p look at what top-k left.
    surely_before, perhaps_before = _before(np.exp(scaled), scaled, sure, possible, spread)
    if sampling.top_p < 1:
        sure, possible = (
            sure & (perhaps_before < sampling.top_p - ROUNDING),
            possible & (surely_before < sampling.top_p + ROUNDING),
        )
    if sampling.min_p > 0:
        least = np.log(sampling.min_p)
        sure, possible = sure & (scaled >= least + spread), possible & (scaled >= least - spread)
    return sure, possible


def _before(weights: Floats, scaled: Floats, sure: Mask, possible: Mask, spread: float) -> tuple[Floats, Floats]:
    """For each token, the least and the most probability that all more likely ones may have together."""
    ranked = np.sort(scaled)
    # up_to[i]: the weight of the i least likely tokens.
    up_to = np.concatenate([[0.0], np.cumsum(np.exp(ranked))])
    surely = up_to[-1] - up_to[np.searchsorted(ranked, scaled + spread, "right")]
    perhaps = up_to[-1] - up_to[np.searchsorted(ranked, scaled - spread, "left")] - weights
    total_least, total_most = weights[sure].sum(), weights[possible].sum()
    return (
        _share(surely, np.maximum(total_most - surely, 0), -spread),
        _share(np.maximum(perhaps, 0), np.maximum(total_least - perhaps, 0), spread),
    )
