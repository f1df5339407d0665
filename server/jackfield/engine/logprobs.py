"""Log probabilities of tokens, for those requests that ask for them."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from jackfield.engine.request import TokenEvent


class Logprobs(NamedTuple):
    """Natural log probabilities of the model's own distribution, before any sampling rule."""

    chosen: mx.array
    """Of the given token; float32 [rows]."""
    top_ids: mx.array
    """The most likely tokens, best first; [rows, top]."""
    top: mx.array
    """Their log probabilities; float32 [rows, top]."""
    entropy: mx.array
    """Of the whole distributions, in nats; float32 [rows], or [0] if nobody asked."""


def logprobs(logits: mx.array, tokens: mx.array, top: int, *, entropy: bool = False) -> Logprobs:
    """Log probabilities of ``tokens`` [rows] and of the ``top`` most likely ones, from logits [rows, vocabulary]."""
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1) - total
    ids, values = _most_likely(logits, top)
    return Logprobs(chosen[:, 0], ids, values - total, _entropy(logits, total) if entropy else mx.zeros(0))


def _most_likely(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Ids and logits, best first; [rows, count] each."""
    if count == 0:
        nothing = mx.zeros((len(logits), 0))
        return nothing, nothing
    ids = mx.argpartition(-logits, count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1)


def _entropy(logits: mx.array, total: mx.array) -> mx.array:
    """-sum(p log p); what a grammar or a bias has ruled out counts as nothing."""
    shares = logits - total
    return -mx.sum(mx.exp(shares) * mx.where(mx.isinf(shares), 0, shares), axis=-1)


def token_events(tokens: Sequence[int], scores: Logprobs) -> list[TokenEvent]:
    """One event a row; waits for the arrays."""
    chosen = cast(list[float], scores.chosen.tolist())
    ids = cast(list[list[int]], scores.top_ids.tolist())
    top = cast(list[list[float]], scores.top.tolist())
    entropy = cast(list[float | None], scores.entropy.tolist()) or [None] * len(tokens)
    return [
        TokenEvent(token, chosen[row], tuple(zip(ids[row], top[row], strict=True)), entropy[row])
        for row, token in enumerate(tokens)
    ]
