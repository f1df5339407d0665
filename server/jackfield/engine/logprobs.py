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


def logprobs(logits: mx.array, tokens: mx.array, top: int) -> Logprobs:
    """Log probabilities of ``tokens`` [rows] and of the ``top`` most likely ones, from logits [rows, vocabulary]."""
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1) - total
    if top == 0:
        nothing = mx.zeros((len(tokens), 0))
        return Logprobs(chosen[:, 0], nothing, nothing)
    ids = mx.argpartition(-logits, top - 1, axis=-1)[:, :top]
    values = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return Logprobs(
        chosen[:, 0], mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1) - total
    )


def token_events(tokens: Sequence[int], scores: Logprobs) -> list[TokenEvent]:
    """One event a row; waits for the arrays."""
    chosen = cast(list[float], scores.chosen.tolist())
    ids = cast(list[list[int]], scores.top_ids.tolist())
    top = cast(list[list[float]], scores.top.tolist())
    return [
        TokenEvent(token, chosen[row], tuple(zip(ids[row], top[row], strict=True))) for row, token in enumerate(tokens)
    ]
