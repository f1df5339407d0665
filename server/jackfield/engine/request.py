"""What goes into the engine and what comes out of it: plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jackfield.errors import JackfieldError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from numpy.typing import NDArray

    from jackfield.engine.grammar import Constraint

FinishReason = Literal["stop", "length", "timeout", "shutdown", "error"]

MissReason = Literal["new", "diverged", "evicted", "damaged", "short", "no_snapshot", "scored", "off"]
"""Why the prefix cache did not serve a whole prompt.

``new``: nothing that starts like it was seen before. ``diverged``: it goes on differently from what was seen.
``evicted``: it was seen, but has had to go since. ``damaged``: its file on disk was not what had been written.
``short``: it is shorter than a block. ``no_snapshot``: the model's state can be taken up at certain points only, and
none was kept here. ``scored``: the prompt's own log probabilities were asked for. ``off``: there is no cache.
"""

Pooling = Literal["mean", "last"]
"""How the hidden states of a text become one vector: their mean, or the last token's."""

LogitsProcessor = Callable[["tuple[int, ...]", "mx.array"], "mx.array"]
"""Takes a sequence's tokens (prompt and answer) and its next logits, float [vocabulary], and answers logits like
them. Runs on the engine thread at every step; when it raises, that one request ends with an error."""

TokenSampler = Callable[["mx.array"], "mx.array | None"]
"""Takes one sequence's next logits, float [vocabulary], with penalties, processors and masks applied, and answers the
id of the token to take, an integer [], or None to leave it to the built-in sampler. Runs on the engine thread at every
step."""

Prepare = Callable[["GenerationRequest"], "GenerationRequest"]
"""Completes a request on the engine thread, where processors and samplers may make arrays of their own."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen. Defaults mean: leave the model's distribution as it is."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p (nucleus sampling)."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens seen in prompt or answer (CTRL, arXiv:1909.05858)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it stands in the answer."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once it stands in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    seed: int = 0
    """Same seed, same text, whatever else is in the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    """An image in a prompt. Its tokens are all alike: what the model gets for them are the image's own embeddings."""

    start: int
    """Position of its first token."""
    count: int
    """How many tokens it has; at least one more follows after them."""
    pixels: "NDArray[np.uint8]"
    """[height, width, 3], red, green and blue, of the size that the model wants."""
    digest: bytes
    """The 32 bytes that stand for the pixels: images of equal digests are the same."""

    @property
    def end(self) -> int:
        """Position of the first token after it."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Adapter:
    """One of the adapters that a model has been loaded with."""

    index: int
    digest: bytes
    """The 16 bytes that stand for its contents: what was computed with it is of no use to others."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate."""

    id: str
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    max_tokens: int
    """With 0 there is no answer: the prompt is read into the prefix cache."""
    sampling: SamplingParameters
    images: tuple[PromptImage, ...] = ()
    """Those in the prompt, in order; only for models that read images."""
    adapter: Adapter | None = None
    """Who answers, if not the model as it is."""
    stop_tokens: frozenset[int] = frozenset()
    """Generation ends at any of these, with finish reason ``stop``; empty to ignore the model's end of sequence."""
    top_logprobs: int | None = None
    """None: no log probabilities; 0: the sampled token's only; k: and those of the k most likely tokens."""
    prompt_logprobs: bool = False
    """Also report the log probabilities of the prompt's own tokens."""
    grammar: "Constraint | None" = None
    processors: tuple[LogitsProcessor, ...] = ()
    sampler: TokenSampler | None = None
    entropy: bool = False
    """Report the entropy of each token's distribution, together with its log probability."""
    prepare: Prepare | None = None
    """Called once, when the request gets to the engine."""
    priority: int = 0
    """Lower ones go first; a second of waiting counts as one less, so that nobody waits for ever."""
    deadline: float | None = None
    """When the answer has to end, on ``time.monotonic``'s clock."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts whose vectors are wanted."""

    id: str
    inputs: tuple[tuple[int, ...], ...]
    """Token ids, at least one of at least one text. Until all of them are read, the request takes its place."""
    pooling: Pooling
    priority: int = 0
    """As for `GenerationRequest`."""
    deadline: float | None = None
    """As for `GenerationRequest`."""


EngineRequest = GenerationRequest | EmbeddingRequest


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What the prefix cache gave a request."""

    tokens: int = 0
    """Tokens of the prompt that did not have to be processed."""
    from_disk: int = 0
    """Of these, the ones that were read from disk."""
    miss: MissReason | None = None
    """Why it was not the whole prompt (but for less than a block at its end, which always runs); None if it was."""


@dataclass(frozen=True, slots=True)
class StartEvent:
    """The request has left the queue for the first time; once a request, before all its other events."""

    waited: float
    """Seconds in the queue."""
    cache: CacheUse


@dataclass(frozen=True, slots=True)
class PrefillEvent:
    """Progress of the prompt: ``done`` of ``total`` tokens are processed or came from the prefix cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. Log probabilities are natural, of the model's own distribution before any sampling rule."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most likely (token id, log probability), best first."""
    entropy: float | None = None
    """Of the whole distribution, in nats."""
    time: float = field(default=0.0, compare=False)
    """When it was known, on ``time.monotonic``'s clock."""


@dataclass(frozen=True, slots=True)
class PromptLogprobsEvent:
    """Log probabilities of the prompt's tokens, in order; the first token has none."""

    tokens: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingEvent:
    """The vectors of a request's texts."""

    vectors: "NDArray[np.float32]"
    """[inputs, width], each of length 1."""


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of every request that was not cancelled."""

    reason: FinishReason
    """``timeout``: the deadline came while the answer was being written; what there is of it is good."""
    error: JackfieldError | None = None
    preemptions: int = 0
    """How often the request had to make room for others, and was processed again later."""
    prefill_seconds: float = 0.0
    """From leaving the queue to the end of the prompt."""
    decode_seconds: float = 0.0
    """From the end of the prompt to the last token."""


EngineEvent = StartEvent | PrefillEvent | TokenEvent | PromptLogprobsEvent | EmbeddingEvent | FinishEvent
