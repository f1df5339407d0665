"""llama.cpp's sampler ``infill``: a completion in the middle of code ends rather than guesses.

What it does is told in llama.h at ``llama_sampler_init_infill``: when ending is likely enough, end; let tokens whose
text begins alike stand together; drop what is unlikely, and end if nothing is left.
"""

from collections.abc import Callable, Mapping
from typing import cast

import mlx.core as mx

CANDIDATES = 40
"""Tokens that are looked at when ``top_k`` sets no lower limit: llama.cpp's own default for it."""

LIKELY = 0.2
"""What the probability of a token must reach."""


class InfillProcessor:
    """A logits processor that leaves the tokens which that sampler would.

    Args:
        ends: tokens that end the answer, at least one.
        text: a token as its vocabulary writes it.
        top_k: the request's; 0 is no limit.
        top_p: the request's.
    """

    def __init__(self, ends: frozenset[int], text: Callable[[int], str], top_k: int = 0, top_p: float = 1.0) -> None:
        self._ends = ends
        self._text = text
        self._top_k = min(top_k or CANDIDATES, CANDIDATES)
        self._top_p = top_p

    def __call__(self, tokens: tuple[int, ...], logits: mx.array) -> mx.array:
        """Logits, float [vocabulary], of which only those that are left are not minus infinity."""
        left = self.choose(self._candidates(logits))
        chosen = mx.full(logits.shape, -mx.inf)
        chosen[mx.array(list(left))] = mx.log(mx.array(list(left.values())))
        return chosen

    def _candidates(self, logits: mx.array) -> dict[int, float]:
        """The most likely tokens with their probabilities, best first, as top-k and top-p leave them."""
        count = min(self._top_k, logits.shape[0])
        best = mx.argpartition(-logits, count - 1)[:count]
        weights = cast(list[float], mx.softmax(logits[best].astype(mx.float32)).tolist())
        pairs = sorted(zip(weights, cast(list[int], best.tolist()), strict=True), reverse=True)
        kept: dict[int, float] = {}
        for weight, token in pairs:
            kept[token] = weight
            if sum(kept.values()) >= self._top_p:
                break
        total = sum(kept.values())
        return {token: weight / total for token, weight in kept.items()}

    def choose(self, candidates: Mapping[int, float]) -> dict[int, float]:
        """Which of the candidates are left, with probabilities that need not add up to one."""
        ending = {token: weight for token, weight in candidates.items() if token in self._ends}
        likely_end = sum(ending.values())
        if ending and 3 * likely_end * len(candidates) > 1 - likely_end:
            return ending
        joined = self._joined({token: weight for token, weight in candidates.items() if token not in ending})
        likely = {token: weight for token, weight in joined.items() if weight >= LIKELY}
        if not likely:
            return ending or {min(self._ends): 1.0}
        total = sum(likely.values()) + likely_end
        return {token: weight for token, weight in likely.items() if weight / total >= 1 / (len(likely) + 1)} | ending

    def _joined(self, candidates: Mapping[int, float]) -> dict[int, float]:
        """The candidates, less likely ones added to those whose text begins theirs, or the other way round."""
        joined: dict[int, float] = {}
        for token, weight in sorted(candidates.items(), key=lambda pair: -pair[1]):
            text = self._text(token)
            stem = next((other for other in joined if _begin_alike(self._text(other), text)), token)
            joined[stem] = joined.get(stem, 0.0) + weight
        return joined


def _begin_alike(one: str, other: str) -> bool:
    # Rows beyond the vocabulary have no text.
    return bool(one and other) and (one.startswith(other) or other.startswith(one))
