"""The decode batch: all sequences that are being answered, one token each a step.

A step first launches the model on the last tokens, and only then reads those tokens: stop conditions, penalties and
grammar masks are worked out on the host while the model runs. A row that turns out to be finished has then been
computed once for nothing, which is cheaper than making the model wait for the host at every step.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx

from jackfield.engine.grammar import GrammarMasks, GrammarMatcher
from jackfield.engine.logprobs import Logprobs, logprobs, token_events
from jackfield.engine.request import FinishReason, GenerationRequest, TokenEvent
from jackfield.engine.runner import Cache, CacheBatch, Runner
from jackfield.engine.sampling import Adjustments, Sampler


@dataclass(slots=True)
class Sequence:
    """One request on its way through the engine."""

    request: GenerationRequest
    caches: list[Cache] = field(default_factory=list)
    """While the prompt is processed: one cache a layer. Empty before, and once the sequence is in the batch."""
    cached: int = 0
    """Tokens of the prompt that came from the prefix cache."""
    processed: int = 0
    """Tokens of the prompt that are in the caches."""
    scored: list[TokenEvent] = field(default_factory=list)
    """The prompt's own log probabilities, when asked for, from its second token on."""
    answer: list[int] = field(default_factory=list)
    matcher: GrammarMatcher | None = None

    def take(self, token: int) -> FinishReason | None:
        """Add a token to the answer; tells whether that ends it, and why."""
        self.answer.append(token)
        ended = self.matcher is not None and self.matcher.advance(token)
        if self.matcher is not None and self.matcher.failed:
            return "length"
        if ended or token in self.request.stop_tokens:
            return "stop"
        return "length" if len(self.answer) >= self.request.max_tokens else None


@dataclass(frozen=True, slots=True)
class Step:
    """What a step brought for one sequence."""

    sequence: Sequence
    token: TokenEvent
    finished: FinishReason | None


class DecodeBatch:
    """All sequences that are being answered. A step is ``launch``, ``read``, ``remove`` what ended, ``sample``."""

    def __init__(self, runner: Runner) -> None:
        self.sequences: list[Sequence] = []
        self._runner = runner
        self._caches = CacheBatch()
        self._adjustments = Adjustments(runner.vocabulary)
        self._tokens = mx.array([], dtype=mx.int32)
        """Each row's last token, which the model has not seen yet; int32 [rows]."""
        self._sampled: list[bool] = []
        """Whether that token was generated; a new row's is the last one of its prompt."""
        self._logits: mx.array | None = None
        self._scores: tuple[list[Sequence], Logprobs] | None = None
        self._rules: tuple[Sampler, GrammarMasks] | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' caches."""
        return self._caches.nbytes

    def join(self, sequence: Sequence) -> None:
        """Take in a sequence whose caches hold its prompt but for the last token."""
        request = sequence.request
        self._caches.join(sequence.caches, len(request.prompt) - 1)
        sequence.caches = []
        sequence.matcher = request.grammar.start() if request.grammar else None
        self._adjustments.add(len(self), request.sampling, request.prompt)
        self._tokens = mx.concatenate([self._tokens, mx.array(request.prompt[-1:], dtype=mx.int32)])
        self._sampled.append(False)
        self.sequences.append(sequence)
        self._rules = None

    def launch(self) -> None:
        """Start the model on each row's last token, unless all of them end with it anyway."""
        ends = (len(s.answer) + 1 >= s.request.max_tokens for s in self.sequences)
        if not all(sampled and end for sampled, end in zip(self._sampled, ends, strict=True)):
            self._logits = self._runner.decode(self._tokens, self._caches)

    def read(self) -> list[Step]:
        """The tokens that the model is running on, as far as they were generated."""
        tokens = cast(list[int], self._tokens.tolist())
        scored = self._read_scores(tokens)
        generated = [token if sampled else None for token, sampled in zip(tokens, self._sampled, strict=True)]
        self._adjustments.follow(generated)
        self._sampled = [True] * len(self)
        return [
            Step(sequence, scored.get(row) or TokenEvent(token), sequence.take(token))
            for row, (sequence, token) in enumerate(zip(self.sequences, generated, strict=True))
            if token is not None
        ]

    def _read_scores(self, tokens: Many[int]) -> dict[int, TokenEvent]:
        if self._scores is None:
            return {}
        sequences, scores = self._scores
        self._scores = None
        row_of = {id(sequence): row for row, sequence in enumerate(self.sequences)}
        rows = [row_of.get(id(sequence)) for sequence in sequences]
        events = token_events([0 if row is None else tokens[row] for row in rows], scores)
        return {
            row: TokenEvent(event.id, event.logprob, event.top[: self.sequences[row].request.top_logprobs])
            for row, event in zip(rows, events, strict=True)
            if row is not None
        }

    def held(self, sequence: Sequence) -> tuple[list[int], list[Cache]]:
        """The tokens that a sequence's caches hold, and the caches, one a layer."""
        row = self.sequences.index(sequence)
        tokens = [*sequence.request.prompt, *sequence.answer]
        return tokens[: self._caches.rows.lengths[row]], self._caches.extract(row)

    def remove(self, leaving: Many[Sequence]) -> None:
        """Drop these sequences, at any point of a step."""
        if not leaving:
            return
        keep = list(range(len(self)))
        # The last row moves into each gap, so that as few rows as possible are copied.
        for row in sorted(map(self.sequences.index, leaving), reverse=True):
            last = keep.pop()
            if row < len(keep):
                keep[row] = last
        index = mx.array(keep, dtype=mx.int32)
        self._caches.keep(keep)
        self._adjustments.keep(keep)
        self._tokens = self._tokens[index]
        self._logits = None if self._logits is None else self._logits[index]
        self._sampled = [self._sampled[row] for row in keep]
        self.sequences = [self.sequences[row] for row in keep]
        self._rules = None

    def sample(self) -> None:
        """Choose each row's next token from the logits that ``launch`` asked for; does not wait for it."""
        if self._logits is None or not self.sequences:
            return
        if self._rules is None:
            sampler = Sampler([s.request.sampling for s in self.sequences])
            self._rules = sampler, GrammarMasks(self._runner.vocabulary, [s.matcher for s in self.sequences])
        sampler, masks = self._rules
        logits = masks(self._adjustments(self._logits))
        self._tokens = sampler(logits, [len(s.answer) for s in self.sequences])
        self._score(self._logits)
        self._logits = None
        mx.async_eval(self._tokens, *(self._scores[1] if self._scores else ()))

    def _score(self, logits: mx.array) -> None:
        rows = [row for row, s in enumerate(self.sequences) if s.request.top_logprobs is not None]
        if not rows:
            return
        index = mx.array(rows)
        top = max(self.sequences[row].request.top_logprobs or 0 for row in rows)
        self._scores = [self.sequences[row] for row in rows], logprobs(logits[index], self._tokens[index], top)
