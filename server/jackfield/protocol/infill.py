"""``POST /infill``, llama.cpp's endpoint for editors: what stands around a gap in, what fills it out."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from jackfield.protocol.base import AnswerModel, Integral, JsonObject, TolerantModel, Unsupported
from jackfield.protocol.completions import said_as_completion
from jackfield.protocol.extension import Extension
from jackfield.protocol.sampling import Choices, RepetitionPenalty, SamplingRequest

SamplerName = Literal[
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "typical_p", "top_p", "min_p", "xtc", "temperature", "infill"
]
StopType = Literal["eos", "limit", "word"]
ModelIfAny = Annotated[
    str,
    BeforeValidator(lambda value: "" if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]
Predicted = Annotated[int, Field(ge=-1), Integral]
Milliseconds = Annotated[int, Field(ge=0, le=86_400_000), Integral]
_WITHOUT: Mapping[str, Mapping[str, float]] = {
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "temperature": {"temperature": 1.0},
    "penalties": {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
}
"""What is the same as not to use a sampler."""


class ExtraFile(TolerantModel):
    """A file to know of, or a piece of one; editors add when they picked it."""

    text: str
    filename: str | None = None


class InfillRequest(SamplingRequest):
    """What stands around a gap, in llama.cpp's words; the names of OpenAI's fields are understood too."""

    ignored_on_purpose: ClassVar[Mapping[str, str]] = {
        "user": SamplingRequest.ignored_on_purpose["user"],
        "cache_prompt": SamplingRequest.ignored_on_purpose["cache_prompt"],
        "id_slot": "There are no slots: all requests share the prefix cache.",
        "n_cache_reuse": "The prefix cache finds common prefixes by itself.",
        "n_keep": "What does not fit is left out around the gap.",
        "t_max_prompt_ms": "llama.cpp takes no notice of it either; 'timeout' limits the whole request.",
    }

    model: ModelIfAny = ""
    """Empty means the only one that is served."""
    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraFile] | None = None
    prompt: str | None = None
    """The beginning of the line with the gap, after the prefix."""
    n_predict: Predicted | None = None
    """0 reads the prompt into the prefix cache; -1 is no limit."""
    n_cmpl: Choices | None = None
    n_indent: Annotated[int, Field(ge=0, le=1024), Integral] | None = None
    """How far each line but the first must be indented; one that is not ends the text before it."""
    t_max_predict_ms: Milliseconds | None = None
    """When this time has passed since the first token, the text ends at the next line break; 0 is no limit."""
    repeat_penalty: RepetitionPenalty | None = None
    samplers: list[SamplerName] | None = None
    response_fields: list[str] | None = None
    return_tokens: bool | None = None
    id_slot: Annotated[int, Integral] | None = None
    n_cache_reuse: Annotated[int, Integral] | None = None
    n_keep: Annotated[int, Integral] | None = None
    t_max_prompt_ms: Annotated[int, Integral] | None = None
    stream_options: Annotated[None, Unsupported("Leave it out: the last event of a stream has all the numbers.")] = None
    lora: Annotated[None, Unsupported("Serve the model with its adapters merged into it.")] = None
    grammar: Annotated[None, Unsupported("Use 'regex': llama.cpp's grammars are not understood here.")] = None
    json_schema: Annotated[None, Unsupported("Use 'regex', or /v1/chat/completions with 'response_format'.")] = None
    n_probs: Annotated[None, Unsupported("Use /v1/completions with 'suffix' and 'logprobs'.")] = None

    @property
    def token_limit(self) -> int | None:
        """How many tokens the client wants at most; 0 wants none."""
        if self.n_predict is None:
            return self.max_tokens
        return None if self.n_predict == -1 else self.n_predict

    def as_completion(self, model: str) -> JsonObject:
        """The same in the words of ``/v1/completions``, but for the files."""
        own = {"model": model, "prompt": self.input_prefix + (self.prompt or ""), "suffix": self.input_suffix}
        return said_as_completion(self) | own | ({"max_tokens": self.token_limit} if self.token_limit else {})

    @model_validator(mode="after")
    def _in_our_terms(self) -> Self:
        """llama.cpp's names and numbers as the other endpoints have them."""
        self.n = self.n_cmpl or self.n
        self.repetition_penalty = self.repeat_penalty or self.repetition_penalty
        if self.seed == -1:
            self.seed = None
        for sampler, settings in _WITHOUT.items():
            if self.samplers is not None and sampler not in self.samplers:
                for name, value in settings.items():
                    setattr(self, name, value)
        return self


class Timings(AnswerModel):
    """How long prompt and text took, in llama.cpp's words; editors show it."""

    cache_n: int
    """Tokens of the prompt that were cached."""
    prompt_n: int
    """Its other tokens."""
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float

    @classmethod
    def of(cls, *, cached: int, prompt: int, prefill: float, predicted: int, decode: float) -> "Timings":
        """Tokens, and what they took in seconds."""
        return cls(
            cache_n=cached,
            prompt_n=prompt,
            prompt_ms=prefill * 1000,
            prompt_per_token_ms=prefill * 1000 / max(prompt, 1),
            prompt_per_second=prompt / max(prefill, 1e-6),
            predicted_n=predicted,
            predicted_ms=decode * 1000,
            predicted_per_token_ms=decode * 1000 / max(predicted, 1),
            predicted_per_second=predicted / max(decode, 1e-6),
        )


class GenerationSettings(AnswerModel):
    """How the text was made."""

    n_ctx: int
    n_predict: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int
    stop: list[str]


class InfillChunk(AnswerModel):
    """More of a text, while it is made."""

    always: ClassVar = ("id_slot", "stop")

    index: int
    content: str
    tokens: list[int]
    id_slot: Literal[0] = 0
    stop: Literal[False] = False
    tokens_predicted: int
    tokens_evaluated: int


class InfillAnswer(AnswerModel):
    """One text for the gap; at the end of a stream its content is empty, and all the rest is said."""

    always: ClassVar = ("id_slot", "stop")
    never_null: ClassVar = ("jackfield",)

    index: int
    content: str
    tokens: list[int]
    """Empty unless ``return_tokens`` asks for them."""
    id_slot: Literal[0] = 0
    stop: Literal[True] = True
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    """Of the prompt, cached ones too."""
    tokens_cached: int
    generation_settings: GenerationSettings
    has_new_line: bool
    truncated: bool
    """Whether some of the files, the prefix or the suffix was left out, since not all of it fits in the context."""
    stop_type: StopType
    stopping_word: str
    timings: Timings
    jackfield: Extension | None = None

    def part(self, fields: Sequence[str] | None) -> JsonObject:
        """The answer, or what of it is wanted; a slash goes into an object, and what is not there is passed over."""
        document: JsonObject = json.loads(self.to_json())
        if fields is None:
            return document
        found = ((path, _at(document, path)) for path in fields)
        return {path: value for path, value in found if value is not None}


class InfillAnswers(AnswerModel):
    """What goes out: one answer, or an array of them, each with the fields that are wanted."""

    answers: list[InfillAnswer]
    fields: list[str] | None

    def to_json(self) -> bytes:
        """The body; without spaces, since llama.vim looks for ``"content":"`` before it reads it."""
        parts = [answer.part(self.fields) for answer in self.answers]
        whole = parts if len(parts) > 1 else parts[0]
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def _at(document: JsonObject, path: str) -> Any:
    value: Any = document
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, dict) else None
    return value
