"""One request on its way through the engine."""

import time
from dataclasses import dataclass, field

import mlx.core as mx

from jackfield.engine.grammar import Matcher
from jackfield.engine.lookup import Lookup
from jackfield.engine.request import CacheUse, FinishEvent, FinishReason, GenerationRequest, PromptImage, TokenEvent
from jackfield.engine.runner import Cache
from jackfield.errors import JackfieldError


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, what has been computed for it, and when."""

    request: GenerationRequest
    caches: list[Cache] = field(default_factory=list)
    """While its tokens are being processed: one cache a layer. Empty before, and once it is in the decode batch."""
    lookup: Lookup | None = None
    """What the prefix cache has, as long as that is still being fetched."""
    cache_use: CacheUse = field(default_factory=CacheUse)
    processed: int = 0
    """Tokens that are in the caches."""
    encoded: mx.array | None = None
    """Embeddings of the image in which the next token to process is, once they are there; [tokens, hidden]."""
    stored: int = 0
    """Tokens that the prefix cache has been given or has given."""
    snapshots: frozenset[int] = frozenset()
    """Where the caches' state is to be kept on the way, for models whose caches cannot be cut."""
    scored: list[TokenEvent] = field(default_factory=list)
    """The prompt's own log probabilities, when asked for, from its second token on."""
    answer: list[int] = field(default_factory=list)
    matcher: Matcher | None = None
    failure: JackfieldError | None = None
    """Why it cannot go on."""
    suspect: bool = False
    """Whether what was computed for it may be wrong, and must not be reused."""
    preemptions: int = 0
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    answering: float | None = None

    def __post_init__(self) -> None:
        self.matcher = self.request.grammar.start() if self.request.grammar else None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer so far."""
        return (*self.request.prompt, *self.answer)

    @property
    def adapter(self) -> int | None:
        """Which of the model's adapters it is for, if any."""
        return None if self.request.adapter is None else self.request.adapter.index

    @property
    def root(self) -> bytes:
        """What its blocks in the prefix cache begin with."""
        return b"" if self.request.adapter is None else self.request.adapter.digest

    @property
    def length(self) -> int:
        """How many tokens these are."""
        return len(self.request.prompt) + len(self.answer)

    @property
    def remaining(self) -> int:
        """Tokens to process before the next one can be sampled; the last one is the decode batch's."""
        return self.length - 1 - self.processed

    @property
    def image(self) -> PromptImage | None:
        """The image in which the next token to process is."""
        return next((image for image in self.request.images if image.start <= self.processed < image.end), None)

    @property
    def image_edges(self) -> list[int]:
        """Where images begin and end: a slice of the prompt is all text, or all of one image."""
        return [edge for image in self.request.images for edge in (image.start, image.end)]

    def embeddings(self, count: int) -> mx.array | None:
        """What stands for the next ``count`` tokens, all of one image; None where token ids say it all."""
        if self.image is None or self.encoded is None:
            return None
        start = self.processed - self.image.start
        return self.encoded[start : start + count]

    def advance(self, count: int) -> None:
        """So many more tokens are in the caches."""
        image = self.image
        self.processed += count
        if self.image is not image:
            self.encoded = None

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's log probabilities are still to be worked out."""
        return self.request.prompt_logprobs and self.answering is None

    @property
    def rank(self) -> float:
        """Lower goes first. A second of waiting counts as one level of priority: the order of two never changes."""
        return self.request.priority + self.submitted

    def take(self, token: int) -> FinishReason | None:
        """Add a token to the answer; tells whether that ends it, and why."""
        self.answer.append(token)
        ended = self.matcher is not None and self.matcher.advance(token)
        if self.matcher is not None and self.matcher.failed:
            return "length"
        if ended or token in self.request.stop_tokens:
            return "stop"
        return "length" if len(self.answer) >= self.request.max_tokens else None

    def preempt(self) -> None:
        """Forget what was computed, to be processed again later; the answer so far stays."""
        self.caches, self.lookup, self.scored, self.encoded = [], None, [], None
        self.processed = self.stored = 0
        self.preemptions += 1

    def expired(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.request.deadline is not None and now >= self.request.deadline

    def finish(self, reason: FinishReason, error: JackfieldError | None = None) -> FinishEvent:
        """Its last event."""
        now = time.monotonic()
        started = now if self.started is None else self.started
        answering = now if self.answering is None else self.answering
        return FinishEvent(reason, error, self.preemptions, answering - started, now - answering)
