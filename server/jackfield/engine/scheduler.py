"""Decides what the engine does next: which prompt is processed, and when everybody gets a token."""

import time
from collections import deque
from dataclasses import dataclass, field

from jackfield.engine.batch import DecodeBatch, Sequence
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import (
    EngineEvent,
    FinishEvent,
    GenerationRequest,
    PrefillEvent,
    PromptLogprobsEvent,
    TokenEvent,
)
from jackfield.engine.runner import Runner

SCORED_SLICE = 128
"""The most prompt tokens that are scored in one go."""

Events = list[tuple[str, EngineEvent]]
"""Events with the id of the request they belong to."""


@dataclass(slots=True)
class PrefillPace:
    """How many prompt tokens to process in one go: as many as fit in the target time.

    Between two slices the other sequences get their tokens, and cancellations are heard.
    """

    alone: float = 1.0
    """Seconds a slice may take while nobody else waits for tokens: long slices use the device best."""
    in_company: float = 0.25
    smallest: int = 32
    largest: int = 2048
    rate: float = 256.0
    """Prompt tokens a second, as last measured."""

    def slice(self, company: int) -> int:
        """Tokens to process next, while ``company`` others are being answered."""
        ideal = int(self.rate * (self.in_company if company else self.alone))
        # Powers of two, so that a GPU sees few different shapes.
        return max(self.smallest, min(self.largest, 1 << max(ideal, 1).bit_length() - 1))

    def measured(self, tokens: int, seconds: float) -> None:
        """Learn from a slice that has been processed; short ones say little about the rate."""
        if tokens >= self.smallest:
            self.rate += 0.5 * (tokens / max(seconds, 1e-6) - self.rate)


@dataclass(slots=True)
class Scheduler:
    """All requests in the engine: waiting, being read (one at a time) and being answered."""

    runner: Runner
    prefix_cache: PrefixCache
    max_batch: int
    pace: PrefillPace = field(default_factory=PrefillPace)
    waiting: deque[Sequence] = field(default_factory=deque)
    reading: Sequence | None = None
    batch: DecodeBatch = field(init=False)

    def __post_init__(self) -> None:
        self.batch = DecodeBatch(self.runner)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or len(self.batch))

    def submit(self, request: GenerationRequest) -> None:
        """Put a request in the queue."""
        self.waiting.append(Sequence(request))

    def cancel(self, request_ids: frozenset[str]) -> None:
        """Forget these requests, wherever they are; what was computed for them stays in the prefix cache."""
        self.waiting = deque(s for s in self.waiting if s.request.id not in request_ids)
        if self.reading and self.reading.request.id in request_ids:
            self._remember(list(self.reading.request.prompt[: self.reading.processed]), self.reading)
            self.reading = None
        self._retire([s for s in self.batch.sequences if s.request.id in request_ids])

    def clear(self) -> None:
        """Drop all requests after a failure, and the prefix cache, which may hold what was never computed."""
        self.waiting.clear()
        self.reading = None
        self.batch = DecodeBatch(self.runner)
        self.prefix_cache.clear()

    def step(self) -> Events:
        """A slice of the prompt that is being read, and one token for everybody who is being answered."""
        events: Events = []
        if self.reading is None and self.waiting and len(self.batch) < self.max_batch:
            self.reading = self._start(self.waiting.popleft())
        if self.reading is not None:
            self._read(self.reading, events)
        if len(self.batch):
            self._answer(events)
        return events

    def _start(self, sequence: Sequence) -> Sequence:
        prompt = sequence.request.prompt
        # The last token always runs through the model, since its logits are the answer's first token.
        usable = self.runner.shares_prefixes and not sequence.request.prompt_logprobs
        blocks = self.prefix_cache.find(prompt[:-1]) if usable else []
        sequence.caches = self.runner.start(blocks)
        sequence.cached = sequence.processed = self.prefix_cache.tokens(blocks)
        return sequence

    def _read(self, sequence: Sequence, events: Events) -> None:
        request = sequence.request
        size = self.pace.slice(len(self.batch))
        if request.prompt_logprobs:
            # Here the slice's logits are needed, each as long as the vocabulary.
            size = min(size, SCORED_SLICE)
        end = min(sequence.processed + size, len(request.prompt) - 1)
        tokens = request.prompt[sequence.processed : end]
        if tokens:
            started = time.perf_counter()
            if request.prompt_logprobs:
                self._score(sequence, tokens)
            else:
                self.runner.prefill(sequence.caches, tokens)
            self.pace.measured(len(tokens), time.perf_counter() - started)
        sequence.processed = end
        events.append((request.id, PrefillEvent(end, len(request.prompt), sequence.cached)))
        if end == len(request.prompt) - 1:
            self._begin(sequence, events)

    def _score(self, sequence: Sequence, tokens: tuple[int, ...]) -> None:
        start = sequence.processed + 1
        following = sequence.request.prompt[start : start + len(tokens)]
        top = sequence.request.top_logprobs or 0
        sequence.scored += self.runner.score(sequence.caches, tokens, following, top)

    def _begin(self, sequence: Sequence, events: Events) -> None:
        """The prompt has been read: the answer begins."""
        self.reading = None
        request = sequence.request
        if request.prompt_logprobs:
            scored = (TokenEvent(request.prompt[0]), *sequence.scored)
            events.append((request.id, PromptLogprobsEvent(scored)))
        self._remember(list(request.prompt[:-1]), sequence)
        self.batch.join(sequence)

    def _answer(self, events: Events) -> None:
        self.batch.launch()
        finished = []
        for step in self.batch.read():
            events.append((step.sequence.request.id, step.token))
            if step.finished:
                events.append((step.sequence.request.id, FinishEvent(step.finished)))
                finished.append(step.sequence)
        self._retire(finished)
        self.batch.sample()

    def _retire(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            tokens, sequence.caches = self.batch.held(sequence)
            self._remember(tokens, sequence)
        self.batch.remove(sequences)

    def _remember(self, tokens: list[int], sequence: Sequence) -> None:
        if self.runner.shares_prefixes:
            self.prefix_cache.store(tokens, sequence.caches)
