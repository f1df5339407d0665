"""From logits to tokens, for all rows of a batch at once, each with its own parameters and seed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from jackfield.engine.request import SamplingParameters

SUM_BLOCK = 256
"""Probabilities that are summed one after another."""

_MASK_64 = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the token's position in the answer.

    SplitMix64's finalizer over both (Steele, Lea & Flood, OOPSLA 2014), 24 bits of it: as many as float32 holds, so
    that no draw is rounded up to 1.
    """
    state = _mix(_mix(seed & _MASK_64) + (position + 1) * 0x9E3779B97F4A7C15)
    return (state >> 40) * 2.0**-24


def _mix(value: int) -> int:
    value &= _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are sampled in the same way."""

    rows: list[int]
    parameters: list[SamplingParameters]

    def column(self, name: str) -> mx.array:
        """One parameter of all rows; float32 [rows, 1]."""
        return mx.array([[float(getattr(p, name))] for p in self.parameters])


class Sampler:
    """Samples one token for each row; rebuilt when the rows of the batch change.

    Rows that take the most likely token, rows that sample from the whole distribution and rows that cut it first
    (top-k, top-p, min-p) form one group each, so that none pays for what only another one asked for.
    """

    def __init__(self, parameters: Sequence[SamplingParameters]) -> None:
        groups: dict[str, list[int]] = {}
        for row, one in enumerate(parameters):
            groups.setdefault(_kind(one), []).append(row)
        self._groups = {kind: _Group(rows, [parameters[row] for row in rows]) for kind, rows in groups.items()}
        order = [row for group in self._groups.values() for row in group.rows]
        self._restore = None if order == sorted(order) else mx.array([order.index(row) for row in range(len(order))])

    def __call__(self, logits: mx.array, positions: Sequence[int]) -> mx.array:
        """Token ids, int32 [rows], from logits [rows, vocabulary]; ``positions`` count each answer's tokens."""
        picked = [self._sample(kind, group, logits, positions) for kind, group in self._groups.items()]
        if len(picked) == 1:
            return picked[0]
        tokens = mx.concatenate(picked)
        return tokens if self._restore is None else tokens[self._restore]

    def _sample(self, kind: str, group: _Group, logits: mx.array, positions: Sequence[int]) -> mx.array:
        if len(group.rows) < logits.shape[0]:
            logits = logits[mx.array(group.rows)]
        if kind == "greedy":
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        logits = logits.astype(mx.float32) / group.column("temperature")
        if kind == "cut":
            logits = mx.where(logits >= _threshold(logits, group), logits, -mx.inf)
        draws = [[uniform(p.seed, positions[row])] for row, p in zip(group.rows, group.parameters, strict=True)]
        return _inverse_cdf(logits, mx.array(draws))


def _kind(parameters: SamplingParameters) -> str:
    # Dividing by next to nothing would overflow; the most likely token is what it would lead to.
    if parameters.temperature < 1e-5 or parameters.top_k == 1:
        return "greedy"
    cut = parameters.top_k > 0 or parameters.top_p < 1 or parameters.min_p > 0
    return "cut" if cut else "whole"


def _inverse_cdf(logits: mx.array, draws: mx.array) -> mx.array:
    """The token at which the cumulative probability passes the draw.

    One uniform number decides a row's token, whatever the vocabulary's size, and in the order of token ids, so that
    a rounding error in a neighbour's probability cannot change the choice unless the draw lies within it.
    """
    cumulative = _cumulative(mx.softmax(logits, axis=-1, precise=True))
    return mx.argmax(cumulative > draws * cumulative[:, -1:], axis=-1).astype(mx.int32)


def _cumulative(probabilities: mx.array) -> mx.array:
    """Cumulative sums of [rows, vocabulary], block by block: small numbers vanish beside a sum that is near 1."""
    rows, vocabulary = probabilities.shape
    if surplus := -vocabulary % SUM_BLOCK:
        probabilities = mx.pad(probabilities, [(0, 0), (0, surplus)])
    within = mx.cumsum(probabilities.reshape(rows, -1, SUM_BLOCK), axis=-1)
    sums = within[..., -1]
    before = mx.cumsum(sums, axis=-1) - sums
    return (within + before[..., None]).reshape(rows, -1)[:, :vocabulary]


def _threshold(logits: mx.array, group: _Group) -> mx.array:
    """The smallest logit that stays, per row: top-k first, then top-p and min-p of what top-k left; [rows, 1]."""
    vocabulary = logits.shape[-1]
    top_k = [p.top_k if 0 < p.top_k < vocabulary else vocabulary for p in group.parameters]
    largest = max(top_k)
    if largest < vocabulary:
        logits = mx.topk(logits, largest, axis=-1)
    ranked = -mx.sort(-logits, axis=-1)
    stays = mx.arange(largest) < mx.array(top_k)[:, None]
    probabilities = mx.softmax(mx.where(stays, ranked, -mx.inf), axis=-1, precise=True)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    stays = stays & (before < group.column("top_p"))
    stays = stays & (probabilities >= group.column("min_p") * probabilities[:, :1])
    return mx.min(mx.where(stays, ranked, mx.inf), axis=-1, keepdims=True)


class Adjustments:
    """Logit bias and the three penalties, for the rows of a batch that have any.

    ``bias`` float32 [rows, vocabulary] is added; logits of tokens marked in ``seen`` bool [rows, vocabulary] are
    weakened by the repetition penalty. Both follow the answer token by token.
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._rows: list[int] = []
        self._parameters: list[SamplingParameters] = []
        self._answered: list[set[int]] = []
        self._bias = mx.zeros((0, vocabulary))
        self._seen = mx.zeros((0, vocabulary), dtype=mx.bool_)

    @staticmethod
    def needed(parameters: SamplingParameters) -> bool:
        """Whether these parameters change any logit before sampling."""
        penalties = parameters.frequency_penalty, parameters.presence_penalty, parameters.repetition_penalty - 1
        return bool(parameters.logit_bias) or any(penalties)

    def add(self, row: int, parameters: SamplingParameters, prompt: Sequence[int], answer: Sequence[int] = ()) -> None:
        """Start to adjust a row that has joined the batch, perhaps in the middle of its answer."""
        if not self.needed(parameters):
            return
        bias = mx.zeros((1, self._vocabulary))
        if parameters.logit_bias:
            bias[0, mx.array(list(parameters.logit_bias))] = mx.array(list(parameters.logit_bias.values()))
        counts = Counter(answer)
        if counts:
            changes = [_penalty(parameters, count) for count in counts.values()]
            bias[0, mx.array(list(counts))] -= mx.array(changes)
        seen = mx.zeros((1, self._vocabulary), dtype=mx.bool_)
        if parameters.repetition_penalty != 1:
            seen[0, mx.array(sorted({*prompt, *answer}))] = True
        self._rows.append(row)
        self._parameters.append(parameters)
        self._answered.append(set(counts))
        self._bias = mx.concatenate([self._bias, bias])
        self._seen = mx.concatenate([self._seen, seen])

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only these rows of the batch, in this order."""
        if not self._rows:
            return
        target = {source: position for position, source in enumerate(indices)}
        kept = [i for i, row in enumerate(self._rows) if row in target]
        if len(kept) < len(self._rows):
            selected = mx.array(kept, dtype=mx.int32)
            self._bias, self._seen = self._bias[selected], self._seen[selected]
        self._parameters = [self._parameters[i] for i in kept]
        self._answered = [self._answered[i] for i in kept]
        self._rows = [target[self._rows[i]] for i in kept]

    def follow(self, tokens: Sequence[int | None]) -> None:
        """Count the token that each row of the batch has just been given; None for a row that got none."""
        picked = [(i, tokens[row]) for i, row in enumerate(self._rows)]
        picked_rows = [(i, token) for i, token in picked if token is not None]
        if not picked_rows:
            return
        changes = [self._change(i, token) for i, token in picked_rows]
        index, ids = mx.array([i for i, _ in picked_rows]), mx.array([token for _, token in picked_rows])
        self._bias[index, ids] -= mx.array(changes)
        self._seen[index, ids] = True

    def _change(self, i: int, token: int) -> float:
        parameters = self._parameters[i]
        if token in self._answered[i]:
            return parameters.frequency_penalty
        self._answered[i].add(token)
        return _penalty(parameters, 1)

    def __call__(self, logits: mx.array) -> mx.array:
        """Adjusted logits [rows, vocabulary]."""
        if not self._rows:
            return logits
        rows = mx.array(self._rows)
        adjusted = logits[rows].astype(mx.float32)
        if any(p.repetition_penalty != 1 for p in self._parameters):
            penalty = mx.array([[p.repetition_penalty] for p in self._parameters])
            weakened = mx.where(adjusted > 0, adjusted / penalty, adjusted * penalty)
            adjusted = mx.where(self._seen, weakened, adjusted)
        adjusted = adjusted + self._bias
        if self._rows == list(range(logits.shape[0])):
            return adjusted
        logits = logits.astype(mx.float32)
        logits[rows] = adjusted
        return logits


def _penalty(parameters: SamplingParameters, count: int) -> float:
    """What a token's logit has lost once it stands ``count`` times in the answer."""
    return parameters.presence_penalty + count * parameters.frequency_penalty
