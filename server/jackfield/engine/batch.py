"""The decode batch: all sequences that are being answered, one token each a step.

A step first launches the model on the last tokens, and only then reads those tokens: stop conditions, penalties and
grammar masks are worked out on the host while the model runs. A row that turns out to be finished has then been
computed once for nothing, which is cheaper than making the model wait for the host at every step.
"""

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from jackfield.engine.grammar import GrammarMasks
from jackfield.engine.kv_cache import PromptSlice
from jackfield.engine.logprobs import Logprobs, logprobs, token_events
from jackfield.engine.request import FinishReason, GenerationRequest, LogitsProcessor, TokenEvent
from jackfield.engine.runner import Cache, Runner
from jackfield.engine.sampling import Adjustments, Sampler
from jackfield.engine.sequence import Sequence
from jackfield.errors import EngineError


@dataclass(frozen=True, slots=True)
class Step:
    """What a step brought for one sequence; without a token when it failed."""

    sequence: Sequence
    token: TokenEvent | None
    finished: FinishReason | None


class DecodeBatch:
    """All sequences that are being answered. A step is ``launch``, ``read``, ``remove`` what ended, ``sample``."""

    def __init__(self, runner: Runner) -> None:
        self.sequences: list[Sequence] = []
        self._runner = runner
        self._caches = runner.batch()
        self._adjustments = Adjustments(runner.vocabulary)
        self._tokens = mx.array([], dtype=mx.int32)
        """Each row's last token, which the model has not seen yet; int32 [rows]."""
        self._sampled: list[bool] = []
        """Whether that token was generated; a new row's is the last one of its prompt."""
        self._logits: mx.array | None = None
        self._broken: mx.array | None = None
        """Rows whose logits were not numbers when that token was sampled; bool [rows]."""
        self._scores: tuple[list[Sequence], Logprobs] | None = None
        self._rules: tuple[Sampler, GrammarMasks] | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' caches, as they count."""
        return self._runner.counted(self._caches.nbytes)

    def nbytes_ahead(self, joining: Many[int] = ()) -> int:
        """The most on the way to one more position in every row, and in rows of these lengths that join."""
        return self._runner.counted(self._caches.nbytes_ahead(joining))

    def trim(self) -> None:
        """Give back what the rows' caches do not need."""
        self._caches.trim()

    def join(self, sequence: Sequence) -> None:
        """Take in a sequence whose caches hold its tokens but for the last one."""
        tokens = sequence.tokens
        self._caches.join(sequence.caches, len(tokens) - 1)
        sequence.caches = []
        self._adjustments.add(len(self), sequence.request.sampling, sequence.request.prompt, sequence.answer)
        self._tokens = mx.concatenate([self._tokens, mx.array(tokens[-1:], dtype=mx.int32)])
        self._sampled.append(False)
        # No verdict on a token that was not sampled.
        self._broken = None if self._broken is None else mx.concatenate([self._broken, mx.array([False])])
        self.sequences.append(sequence)
        self._rules = None

    def wait(self) -> None:
        """Wait until nothing is being computed."""
        mx.eval(self._tokens)

    def launch(self, prompt: PromptSlice | None = None) -> None:
        """Start the model on each row's last token, unless all of them end with it anyway.

        ``prompt`` is read in the same pass, only if the runner ``fuses``; its sequence may join once the step has been
        sampled.
        """
        ends = (len(s.answer) + 1 >= s.request.max_tokens for s in self.sequences)
        if not all(sampled and end for sampled, end in zip(self._sampled, ends, strict=True)):
            self._logits = self._runner.decode(self._tokens, self._caches, prompt, [s.adapter for s in self.sequences])
        elif prompt is not None:
            self._runner.prefill(prompt.caches, prompt.tokens, adapter=prompt.adapter)

    def read(self) -> list[Step]:
        """The tokens that the model is running on, as far as they were generated; waits for them."""
        tokens = cast(list[int], self._tokens.tolist())
        now = time.monotonic()
        scored = self._read_scores(tokens, now)
        self._find_broken()
        generated = [token if sampled else None for token, sampled in zip(tokens, self._sampled, strict=True)]
        self._adjustments.follow(generated)
        self._sampled = [True] * len(self)
        return [
            self._step(sequence, scored.get(row) or TokenEvent(token, time=now))
            for row, (sequence, token) in enumerate(zip(self.sequences, generated, strict=True))
            if token is not None
        ]

    @staticmethod
    def _step(sequence: Sequence, token: TokenEvent) -> Step:
        if sequence.failure is not None:
            return Step(sequence, None, "error")
        return Step(sequence, token, sequence.take(token.id))

    def _find_broken(self) -> None:
        if self._broken is None:
            return
        for sequence, is_broken in zip(self.sequences, cast(list[bool], self._broken.tolist()), strict=True):
            if is_broken:
                sequence.failure = EngineError("The model's output was not a number.", suggestions=("Send it again.",))
                sequence.suspect = True
        self._broken = None

    def _read_scores(self, tokens: Many[int], now: float) -> dict[int, TokenEvent]:
        if self._scores is None:
            return {}
        sequences, scores = self._scores
        self._scores = None
        row_of = {id(sequence): row for row, sequence in enumerate(self.sequences)}
        rows = [row_of.get(id(sequence)) for sequence in sequences]
        events = token_events([0 if row is None else tokens[row] for row in rows], scores)
        return {
            row: _as_asked(event, self.sequences[row].request, now)
            for row, event in zip(rows, events, strict=True)
            if row is not None
        }

    def held(self, sequence: Sequence) -> tuple[tuple[int, ...], list[Cache]]:
        """The tokens that a sequence's caches hold, and the caches, one a layer."""
        row = self.sequences.index(sequence)
        return sequence.tokens[: self._caches.rows.lengths[row]], self._caches.extract(row)

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
        self._broken = None if self._broken is None else self._broken[index]
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
        # Any logit that is not a number makes the sum one; in float32, since float16 overflows.
        self._broken = mx.isnan(mx.sum(self._logits.astype(mx.float32), axis=-1))
        logits = masks(self._process(self._adjustments(self._logits)))
        self._tokens = self._sample_otherwise(sampler(logits, [len(s.answer) for s in self.sequences]), logits)
        self._score(self._logits)
        self._logits = None
        mx.async_eval(self._tokens, self._broken, *(self._scores[1] if self._scores else ()))

    def _process(self, logits: mx.array) -> mx.array:
        """Logits after the processors that requests brought along; one that fails ends its own request only."""
        if not any(s.request.processors for s in self.sequences):
            return logits
        rows = [logits[row] for row in range(len(self))]
        for row, sequence in enumerate(self.sequences):
            for processor in sequence.request.processors:
                try:
                    rows[row] = _processed(processor, sequence, rows[row])
                except Exception as error:
                    sequence.failure = EngineError(
                        f"A logits processor failed: {error!r}",
                        suggestions=("Send the request again without what asks for it.", "Look at the server's log."),
                    )
        return mx.stack(rows)

    def _sample_otherwise(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """The tokens, with those that requests have samplers of their own for chosen by these."""
        for row, sequence in enumerate(self.sequences):
            own = sequence.request.sampler(logits[row]) if sequence.request.sampler else None
            if own is not None:
                tokens[row] = own
        return tokens

    def _score(self, logits: mx.array) -> None:
        rows = [row for row, s in enumerate(self.sequences) if s.request.top_logprobs is not None]
        if not rows:
            return
        index = mx.array(rows)
        scored = [self.sequences[row] for row in rows]
        top = max(s.request.top_logprobs or 0 for s in scored)
        entropy = any(s.request.entropy for s in scored)
        self._scores = scored, logprobs(logits[index], self._tokens[index], top, entropy=entropy)


def _as_asked(event: TokenEvent, request: GenerationRequest, now: float) -> TokenEvent:
    """Without what others in the batch asked for."""
    entropy = event.entropy if request.entropy else None
    return TokenEvent(event.id, event.logprob, event.top[: request.top_logprobs], entropy, now)


def _processed(processor: LogitsProcessor, sequence: Sequence, logits: mx.array) -> mx.array:
    processed = processor(sequence.tokens, logits)
    if processed.shape != logits.shape:
        raise ValueError(f"it answered logits of shape {processed.shape} instead of {logits.shape}")
    # Evaluated here, so that what goes wrong in it is not found at somebody else's step.
    mx.eval(processed)
    return processed
