"""Decides what the engine does next: who gets in, which prompt goes on, and when everybody gets a token."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from jackfield.engine.batch import DecodeBatch
from jackfield.engine.blocks import BLOCK_TOKENS
from jackfield.engine.embedding import Embedding
from jackfield.engine.kv_cache import PromptSlice
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.pace import SCORED_SLICE, PrefillPace
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.queue import WaitingQueue
from jackfield.engine.request import (
    CacheUse,
    EmbeddingEvent,
    EmbeddingRequest,
    EngineEvent,
    EngineRequest,
    PrefillEvent,
    PromptLogprobsEvent,
    StartEvent,
    TokenEvent,
)
from jackfield.engine.room import Room
from jackfield.engine.runner import Runner
from jackfield.engine.sequence import Sequence
from jackfield.engine.statistics import Statistics
from jackfield.errors import DeadlineExceededError, EngineError, JackfieldError, MemoryPressureError

READERS = 4
"""Prompts that are processed in turns. A short one need not wait for a long one, and each holds its caches."""

STORE_TOKENS = 256
"""While a long prompt is processed, the prefix cache is given this many tokens at a time."""

Events = list[tuple[str, EngineEvent]]
"""Events with the id of the request they belong to."""


@dataclass(slots=True)
class Scheduler:
    """All requests in the engine: waiting, being read (their prompts processed) and being answered.

    A request that is let in gets a place in the decode batch and room for its prompt. When answers outgrow the
    memory, the last ones to come make room: they wait again, and go on later where they were.
    """

    runner: Runner
    prefix_cache: PrefixCache
    max_batch: int
    guard: MemoryGuard = field(default_factory=lambda: MemoryGuard(1 << 62))
    pace: PrefillPace = field(default_factory=PrefillPace)
    statistics: Statistics = field(default_factory=Statistics)
    waiting: WaitingQueue = field(default_factory=WaitingQueue)
    reading: list[Sequence] = field(default_factory=list)
    batch: DecodeBatch = field(init=False)
    room: Room = field(init=False)
    _turns: int = 0
    _full: bool = False
    """Somebody had to make room: nobody gets in before somebody has ended, or they would push each other out."""

    def __post_init__(self) -> None:
        self.batch = self.new_batch()
        self.room = Room(self.runner, self.guard, self.prefix_cache, self.batch, self.reading)

    def new_batch(self) -> DecodeBatch:
        """An empty decode batch."""
        return DecodeBatch(self.runner)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or len(self.batch))

    # --- What the engine's thread asks for -----------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> None:
        """Put a request in the queue."""
        sequence = Embedding.of(request) if isinstance(request, EmbeddingRequest) else Sequence(request)
        sequence.submitted = self.guard.clock()
        self.waiting.put(sequence)

    def cancel(self, request_ids: frozenset[str]) -> None:
        """Forget these requests, wherever they are; what was computed for them stays in the prefix cache."""
        self._withdraw(lambda sequence: sequence.request.id in request_ids)
        self._count()

    def step(self) -> Events:
        """A slice of one prompt, and one token for everybody who is being answered."""
        started = time.perf_counter()
        answering = len(self.batch)
        events: Events = []
        self._expire(events)
        self.relieve()
        self._admit(events)
        reader = self._next_reader(events)
        if reader is not None and len(self.batch) and self._shares_step(reader):
            self._read_and_answer(reader, events)
        else:
            reading_seconds = self._read(reader, events) if reader is not None else 0.0
            self._answer(events)
            if answering:
                self.pace.stepped(time.perf_counter() - started - reading_seconds)
        self._count()
        return events

    def rest(self) -> None:
        """Nothing to do: other programs may need memory all the same."""
        self.relieve()
        self._count()

    def resize(self, pool: int, prefix_cache: int) -> None:
        """Have more memory, or less, of which the prefix cache may take so much; what is too much is given back."""
        self.guard.pool = pool
        self.room.cache_budget = prefix_cache
        self.relieve()
        self.runner.release()
        self._count()

    def clear(self) -> None:
        """Drop all requests after a failure, and the prefix cache, which may hold what was never computed."""
        self.waiting.clear()
        for sequence in self.reading:
            if sequence.lookup is not None:
                sequence.lookup.cancel()
        self.reading.clear()
        self.batch = self.room.batch = self.new_batch()
        self.prefix_cache.clear()
        self.runner.release()
        self._count()

    def close(self) -> None:
        """The end: the prefix cache is written to disk."""
        self.prefix_cache.flush()
        self.prefix_cache.close()

    # --- Making room ---------------------------------------------------------------------------------------------

    def relieve(self) -> None:
        """See to it that memory suffices: first the prefix cache gives way, then the last requests to come."""
        self.room.relieve()
        while self.room.overfull:
            self._preempt(self.room.last)
            self.room.look()

    def _make_room(self, joining: Sequence) -> bool:
        """The same for one that is to join the batch; False when it had to make room itself."""
        while self.room.lacks(joining):
            last = self.room.last
            self._preempt(last)
            if last is joining:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        if sequence in self.reading:
            self.reading.remove(sequence)
            if sequence.lookup is not None:
                sequence.lookup.cancel()
        else:
            self.batch.remove([sequence])
        sequence.preempt()
        self.waiting.put(sequence)
        self.statistics.preemptions += 1
        self._full = True

    # --- Getting in ----------------------------------------------------------------------------------------------

    def _admit(self, events: Events) -> None:
        if not self.room.busy:
            self._full = False
        while (first := self.waiting.first) and self._has_place():
            if not self.room.could_hold(first):
                self._fail(self.waiting.take(first), MemoryPressureError(), events)
            elif fitting := next(filter(self.room.admits, self.waiting.candidates()), None):
                self._start(self.waiting.take(fitting))
            elif self.room.busy:
                return
            elif not self.room.refused_for_long:
                # Other programs may give memory back at any moment.
                time.sleep(0.02)
                return
            else:
                self._fail(self.waiting.take(first), MemoryPressureError(), events)

    def _has_place(self) -> bool:
        working = sum(sequence.lookup is None for sequence in self.reading)
        return not self._full and working < READERS and self.room.busy < self.max_batch

    def _start(self, sequence: Sequence) -> None:
        """Room for the prompt is promised; what the prefix cache has may come from disk, which takes a while."""
        self.reading.append(sequence)
        if not isinstance(sequence, Embedding):
            sequence.caches = self.runner.start()
            if not sequence.scores_prompt:
                # The last token always runs through the model, since its logits are the next one's.
                sequence.lookup = self.prefix_cache.lookup(sequence.tokens[:-1], sequence.request.images, sequence.root)
        # What was found is the last to give way.
        self.room.give_way()

    def _started(self, sequence: Sequence, events: Events) -> None:
        """What the prefix cache had is there."""
        if not isinstance(sequence, Embedding):
            self._restore(sequence)
        if sequence.started is None:
            sequence.started = time.monotonic()
            self._count_start(sequence)
            waited = sequence.started - sequence.submitted
            events.append((sequence.request.id, StartEvent(waited, sequence.cache_use)))

    def _restore(self, sequence: Sequence) -> None:
        sequence.cache_use = CacheUse(miss="scored")
        if (lookup := sequence.lookup) is not None:
            sequence.lookup = None
            sequence.cache_use = lookup.restore(sequence.caches)
            sequence.processed = sequence.stored = sequence.cache_use.tokens
            sequence.snapshots = self._snapshots(sequence, lookup.branch)
        self.runner.reserve(sequence.caches, sequence.length)

    def _snapshots(self, sequence: Sequence, branch: int) -> frozenset[int]:
        """Where to keep the state of caches that cannot be cut: where prompts part, and near this one's end."""
        if not self.prefix_cache.stateful:
            return frozenset()
        end = (sequence.length - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        return frozenset({branch, end} - {0})

    def _fail(self, sequence: Sequence, error: JackfieldError, events: Events) -> None:
        events.append((sequence.request.id, sequence.finish("error", error)))

    # --- Reading prompts -----------------------------------------------------------------------------------------

    def _shares_step(self, sequence: Sequence) -> bool:
        """Whether its next slice can go through the model together with the last tokens of the others."""
        alone = isinstance(sequence, Embedding) or sequence.scores_prompt or sequence.image is not None
        return self.runner.fuses and not alone

    def _read(self, sequence: Sequence, events: Events) -> float:
        """Process a slice of a prompt by itself, or encode the image that is next; returns the seconds it took."""
        # What the batch still computes must not be taken for the slice's time.
        self.batch.wait()
        started = time.perf_counter()
        if isinstance(sequence, Embedding):
            self._embed(sequence, events)
            return time.perf_counter() - started
        if (image := sequence.image) is not None and sequence.encoded is None:
            sequence.encoded = self.runner.encode(image)
            return time.perf_counter() - started
        tokens = self._next_slice(sequence)
        if sequence.scores_prompt:
            self._score(sequence, tokens)
        else:
            self.runner.prefill(sequence.caches, tokens, sequence.embeddings(len(tokens)), adapter=sequence.adapter)
        self.pace.sliced(len(tokens), time.perf_counter() - started, len(self.batch))
        self._has_read(sequence, len(tokens), events)
        return time.perf_counter() - started

    def _embed(self, embedding: Embedding, events: Events) -> None:
        """The same for texts whose vectors are wanted; the last slice brings these."""
        started = time.perf_counter()
        count = embedding.read(self.runner, self.pace.slice(len(self.batch), len(self.reading)))
        self.pace.sliced(count, time.perf_counter() - started, len(self.batch))
        if not embedding.remaining:
            self.reading.remove(embedding)
            self._full = False
            self._deliver(embedding, events)

    def _deliver(self, embedding: Embedding, events: Events) -> None:
        try:
            events.append((embedding.request.id, EmbeddingEvent(embedding.vectors())))
        except FloatingPointError:
            error = EngineError("The model's output was not a number.", suggestions=("Send it again.",))
            self._fail(embedding, error, events)
        else:
            events.append((embedding.request.id, embedding.finish("stop")))

    def _read_and_answer(self, sequence: Sequence, events: Events) -> None:
        """A slice of a prompt and everybody's next token in one pass, for which the weights are read once."""
        self.batch.wait()
        started = time.perf_counter()
        tokens = self._next_slice(sequence, shared=True)
        self._answer(events, PromptSlice(tokens, sequence.caches, sequence.adapter))
        self.batch.wait()
        self.pace.shared(len(tokens), time.perf_counter() - started)
        self._has_read(sequence, len(tokens), events)

    def _has_read(self, sequence: Sequence, count: int, events: Events) -> None:
        sequence.advance(count)
        self._store_on_the_way(sequence)
        if sequence.answering is None:
            events.append((sequence.request.id, PrefillEvent(sequence.processed, len(sequence.request.prompt))))
        if not sequence.remaining:
            self._begin(sequence, events)

    def _next_reader(self, events: Events) -> Sequence | None:
        """Whose prompt goes on: in turns the first in rank, so that it ends, and the one that needs least."""
        for sequence in [s for s in self.reading if s.started is None or s.lookup is not None]:
            # One that begins may have pushed out another.
            if sequence in self.reading and (sequence.lookup is None or sequence.lookup.ready):
                self._started(sequence, events)
                if not sequence.remaining:
                    self._begin(sequence, events)
        ready = [sequence for sequence in self.reading if sequence.lookup is None]
        if not ready:
            self._wait_for_disk()
            return None
        self._turns += 1
        return min(ready, key=lambda s: s.remaining if self._turns % 2 else s.rank)

    def _wait_for_disk(self) -> None:
        if self.reading and not len(self.batch) and self.reading[0].lookup:
            self.reading[0].lookup.rest(0.01)

    def _next_slice(self, sequence: Sequence, *, shared: bool = False) -> tuple[int, ...]:
        size = self.pace.slice(len(self.batch), len(self.reading), shared=shared)
        if sequence.scores_prompt:
            size = min(size, SCORED_SLICE)
        return sequence.tokens[sequence.processed : self._end_of_slice(sequence, size)]

    def _end_of_slice(self, sequence: Sequence, size: int) -> int:
        end = sequence.processed + min(size, sequence.remaining)
        if self.prefix_cache.stateful and sequence.remaining > size >= BLOCK_TOKENS:
            # States can be kept between blocks only.
            end = max(end // BLOCK_TOKENS * BLOCK_TOKENS, sequence.processed + 1)
        stops = (*sequence.snapshots, *sequence.image_edges)
        return min((stop for stop in stops if sequence.processed < stop < end), default=end)

    def _score(self, sequence: Sequence, tokens: tuple[int, ...]) -> None:
        start = sequence.processed + 1
        following = sequence.request.prompt[start : start + len(tokens)]
        top = sequence.request.top_logprobs or 0
        embeddings = sequence.embeddings(len(tokens))
        sequence.scored += self.runner.score(
            sequence.caches, tokens, following, top, embeddings, adapter=sequence.adapter
        )

    def _store_on_the_way(self, sequence: Sequence) -> None:
        if sequence.processed in sequence.snapshots:
            self._remember(sequence.tokens[: sequence.processed], sequence, snapshot=True)
        elif sequence.processed - sequence.stored >= STORE_TOKENS:
            self._remember(sequence.tokens[: sequence.processed], sequence)

    def _begin(self, sequence: Sequence, events: Events) -> None:
        """The prompt has been read: the answer begins, or goes on, or waits until there is room for it."""
        if sequence.scores_prompt:
            scored = (TokenEvent(sequence.request.prompt[0]), *sequence.scored)
            events.append((sequence.request.id, PromptLogprobsEvent(scored)))
        sequence.answering = sequence.answering or time.monotonic()
        self._remember(sequence.tokens[:-1], sequence)
        if not sequence.request.max_tokens:
            self.reading.remove(sequence)
            self._full = False
            events.append((sequence.request.id, sequence.finish("length")))
        elif self._make_room(sequence):
            self.reading.remove(sequence)
            self.batch.join(sequence)

    # --- Answering -----------------------------------------------------------------------------------------------

    def _answer(self, events: Events, prompt: PromptSlice | None = None) -> None:
        if not len(self.batch):
            return
        self.batch.launch(prompt)
        finished, tokens = [], 0
        for step in self.batch.read():
            name = step.sequence.request.id
            if step.token:
                events.append((name, step.token))
                tokens += 1
            if step.finished:
                events.append((name, step.sequence.finish(step.finished, step.sequence.failure)))
                finished.append(step.sequence)
        if tokens:
            self.statistics.generated_tokens += tokens
            self.statistics.batch_sizes[tokens] += 1
        self._retire(finished)
        self.batch.sample()

    # --- Leaving -------------------------------------------------------------------------------------------------

    def _expire(self, events: Events) -> None:
        """End the requests whose time is over: with what there is of an answer, or with an error."""
        now = self.guard.clock()
        for sequence in self._withdraw(lambda sequence: sequence.expired(now)):
            if sequence.answer:
                events.append((sequence.request.id, sequence.finish("timeout")))
            else:
                self._fail(sequence, DeadlineExceededError(), events)

    def _withdraw(self, leaves: Callable[[Sequence], bool]) -> list[Sequence]:
        """Take out all that ``leaves`` says so of, wherever they are; what was computed stays in the prefix cache."""
        waiting = self.waiting.remove(leaves)
        reading = [sequence for sequence in self.reading if leaves(sequence)]
        for sequence in reading:
            self.reading.remove(sequence)
            self._remember_part(sequence)
        answering = [sequence for sequence in self.batch.sequences if leaves(sequence)]
        self._retire(answering)
        return [*waiting, *reading, *answering]

    def _retire(self, sequences: Iterable[Sequence]) -> None:
        leaving = list(sequences)
        for sequence in leaving:
            if sequence.suspect:
                self._distrust(sequence)
            else:
                tokens, sequence.caches = self.batch.held(sequence)
                self._remember(tokens, sequence)
                sequence.caches = []
        self.batch.remove(leaving)
        self._full = self._full and not leaving

    def _remember(self, tokens: tuple[int, ...], sequence: Sequence, *, snapshot: bool = False) -> None:
        self.prefix_cache.store(tokens, sequence.caches, snapshot, sequence.request.images, sequence.root)
        sequence.stored = len(tokens)

    def _remember_part(self, sequence: Sequence) -> None:
        if sequence.lookup is not None:
            sequence.lookup.cancel()
        elif sequence.caches:
            part = sequence.tokens[: sequence.processed]
            self._remember(part, sequence, snapshot=not len(part) % BLOCK_TOKENS)

    def _distrust(self, sequence: Sequence) -> None:
        """What was computed is wrong, and nobody knows since when: forget all that may come from it."""
        self.prefix_cache.discard(sequence.tokens, sequence.request.images, sequence.root)
        self.prefix_cache.clear()

    # --- Numbers -------------------------------------------------------------------------------------------------

    def _count_start(self, sequence: Sequence) -> None:
        use, counts = sequence.cache_use, self.statistics
        if isinstance(sequence, Embedding):
            counts.prompt_tokens += sequence.remaining
            return
        counts.prompt_tokens += len(sequence.request.prompt)
        counts.cached_tokens["disk"] += use.from_disk
        counts.cached_tokens["memory"] += use.tokens - use.from_disk
        if use.miss != "off":
            counts.queried_tokens += len(sequence.request.prompt)
        if use.miss is None:
            counts.hits += 1
        else:
            counts.misses[use.miss] += 1

    def _count(self) -> None:
        counts, cache = self.statistics, self.prefix_cache
        counts.waiting, counts.reading, counts.running = len(self.waiting), len(self.reading), len(self.batch)
        counts.kv_bytes, counts.kv_pool_bytes = self.room.held, self.guard.pool
        counts.cache_bytes = {"memory": cache.nbytes, "disk": cache.disk.nbytes if cache.disk else 0}
        counts.evictions = {"memory": cache.evictions, "disk": cache.disk.evictions if cache.disk else 0}
        counts.device_bytes = self.runner.device_bytes()
        counts.pressure = self.guard.pressure.name.lower()
