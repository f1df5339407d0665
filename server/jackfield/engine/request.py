"""What goes into the engine and what comes out of it: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jackfield.engine.grammar import Grammar
from jackfield.errors import JackfieldError

FinishReason = Literal["stop", "length", "error"]


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


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate."""

    id: str
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    max_tokens: int
    sampling: SamplingParameters
    stop_tokens: frozenset[int] = frozenset()
    """Generation ends at any of these, with finish reason ``stop``; empty to ignore the model's end of sequence."""
    top_logprobs: int | None = None
    """None: no log probabilities; 0: the sampled token's only; k: and those of the k most likely tokens."""
    prompt_logprobs: bool = False
    """Also report the log probabilities of the prompt's own tokens."""
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class PrefillEvent:
    """Progress of the prompt: ``cached`` of ``total`` tokens came from the prefix cache, ``done`` are processed."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. Log probabilities are natural, of the model's own distribution before any sampling rule."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most likely (token id, log probability), best first."""


@dataclass(frozen=True, slots=True)
class PromptLogprobsEvent:
    """Log probabilities of the prompt's tokens, in order; the first token has none."""

    tokens: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of every request that was not cancelled."""

    reason: FinishReason
    error: JackfieldError | None = None


EngineEvent = PrefillEvent | TokenEvent | PromptLogprobsEvent | FinishEvent
