"""What Jackfield says about an answer beyond OpenAI's words, to clients that ask for it with ``jackfield: true``."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from jackfield.protocol.base import AnswerModel, JsonObject

EndedBy = Literal["stop", "stop_string", "tool_call", "length", "timeout", "shutdown", "error"]
MissReason = Literal["new", "diverged", "evicted", "damaged", "short", "no_snapshot", "scored", "off"]
Seconds = Annotated[float, BeforeValidator(lambda value: round(value, 6))]

_EXPLANATIONS: Mapping[MissReason | None, str] = {
    None: "All of the prompt was cached, but for its last tokens, which always have to be processed.",
    "new": "No prompt that begins like this one has been seen; begin prompts with what they have in common.",
    "diverged": "After its cached tokens it differs from the prompts seen before; put what changes, as dates do, last.",
    "evicted": "More of it was cached once but had to go; raise 'prefix_cache_bytes' or 'prefix_cache_disk_bytes'.",
    "damaged": "More of it was on disk but damaged, and has been thrown away; if this goes on, look after the disk.",
    "short": "The prompt is shorter than the pieces that are cached; processing it costs next to nothing.",
    "no_snapshot": "This model can only go on from certain points, and there was none here yet; now there is.",
    "scored": "All of it was processed for its log probabilities; leave out 'echo' or 'logprobs' to use the cache.",
    "off": "There is no prefix cache; set 'prefix_cache_bytes' above 0 to have one.",
}


class CacheReport(AnswerModel):
    """How much of the prompt the prefix cache had, and why not more."""

    prompt_tokens: int
    cached_tokens: int
    from_disk: int
    miss: MissReason | None
    explanation: str

    @classmethod
    def of(cls, *, prompt: int, cached: int, from_disk: int, miss: MissReason | None) -> "CacheReport":
        """Put the reason into words."""
        return cls(
            prompt_tokens=prompt,
            cached_tokens=cached,
            from_disk=from_disk,
            miss=miss,
            explanation=_EXPLANATIONS[miss],
        )


class ConfidenceReport(AnswerModel):
    """How far an answer can be trusted, in one plugin's opinion."""

    score: float
    """From 0 to 1."""
    label: str
    factors: dict[str, float]
    """What the score was made of."""


class CompressionReport(AnswerModel):
    """How the conversation was made shorter before the model saw it."""

    plugin: str
    tokens_before: int
    tokens_after: int
    report: JsonObject
    """What the plugin says of it."""


class ChoiceReport(AnswerModel):
    """How one choice came about."""

    never_null: ClassVar = ("confidence",)

    index: int
    cache: CacheReport | None
    """None when the choice never left the queue."""
    queue_seconds: Seconds
    prefill_seconds: Seconds
    decode_seconds: Seconds
    preemptions: int | None
    """None when the answer was cut here, at a stop string or a call, so that the engine did not say."""
    ended_by: EndedBy
    confidence: dict[str, ConfidenceReport] | None = None
    """By plugin; absent when none has an opinion."""


class AttemptReport(AnswerModel):
    """How one way of a model's route did."""

    never_null: ClassVar = ("reason",)

    backend: str
    """``mlx``, or an upstream by name."""
    outcome: Literal["answered", "skipped", "failed"]
    reason: str | None = None
    """The condition that was not met, or the error's code; absent for who answered."""


class Extension(AnswerModel):
    """All there is to say about an answer; clients must expect more keys here."""

    never_null: ClassVar = ("compression", "attempts")

    request_id: str
    """As in the header ``X-Request-ID``."""
    backend: str
    """Who answered."""
    choices: list[ChoiceReport]
    compression: CompressionReport | None = None
    """Absent when the model saw the whole conversation."""
    attempts: list[AttemptReport] | None = None
    """All that were asked or left out, in order; absent when the model has no route."""
