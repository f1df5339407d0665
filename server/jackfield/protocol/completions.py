"""``POST /v1/completions``, the older endpoint: plain text in, plain text out."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from jackfield.protocol.base import AnswerModel, Integral, JsonObject, refusal
from jackfield.protocol.generation import GenerationAnswer
from jackfield.protocol.logprobs import CompletionLogprobs
from jackfield.protocol.prompts import Prompt, each
from jackfield.protocol.sampling import Choices, SamplingRequest
from jackfield.protocol.usage import Usage

FinishReason = Literal["stop", "length"]


Logprobs = Annotated[int, Field(ge=0, le=5), Integral]


class CompletionRequest(SamplingRequest):
    """One or more texts to go on with."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: Logprobs | None = None
    best_of: Choices | None = None
    suffix: str | None = None
    """What stands after the gap, for models that fill in the middle; empty is the same as none."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, however they were written."""
        return each(self.prompt)

    @model_validator(mode="after")
    def _best_of_is_n(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refusal(
                "unsupported_value",
                "'{param}' is only supported when it equals 'n': Jackfield returns every completion it makes.",
                at="best_of",
                suggestions=("Leave out 'best_of', and choose among 'n' completions yourself.",),
            )
        return self

    @model_validator(mode="after")
    def _no_scores_around_a_gap(self) -> Self:
        if self.suffix and self.echo and self.logprobs is not None:
            raise refusal(
                "unsupported_value",
                "'{param}' is not supported together with 'echo' and 'suffix': the model reads more than the prompt.",
                at="logprobs",
                suggestions=("Leave out one of the three.",),
            )
        return self


def said_as_completion(request: SamplingRequest) -> JsonObject:
    """What another endpoint's request says in the fields of this one."""
    said = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: value for name, value in said.items() if name in CompletionRequest.model_fields}


class CompletionChoice(AnswerModel):
    """One of the completions asked for; those of the first prompt come first."""

    always: ClassVar = ("logprobs",)

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason


class Completion(GenerationAnswer):
    """The answer when it does not stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(AnswerModel):
    """What a chunk adds to one of the completions."""

    always: ClassVar = ("logprobs", "finish_reason")

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionChunk(GenerationAnswer):
    """One event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChunkChoice]
