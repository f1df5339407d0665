"""The fields that both endpoints share: which model, how to sample, when to stop."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from jackfield.protocol.asking import Asking
from jackfield.protocol.base import Integral, Text, by_kind, refusal
from jackfield.protocol.streaming import StreamOptions

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1), Integral]
MinP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.1, le=10)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), Integral]
Choices = Annotated[int, Field(ge=1, le=128), Integral]
TokenLimit = Annotated[int, Field(ge=1), Integral]
TokenIdKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[
    Annotated[Text, Tag("=string")] | Annotated[list[Text], Field(max_length=64), Tag("=array")],
    by_kind({str: "=string", list: "=array"}, "a string or an array of strings"),
]


class Sampling(Asking):
    """How tokens are chosen and when the answer stops, in requests of every dialect that says so in OpenAI's words."""

    shape: ClassVar[str] = "response_format"
    """Where else a request says what the answer has to be."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: dict[TokenIdKey, Bias] | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    ignore_eos: bool | None = None
    regex: Text | None = None
    """What the whole answer has to match."""
    grammar: Text | None = None
    """The same as a grammar, in llguidance's dialect of Lark."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [name for name in (self.shape, "regex", "grammar") if self._constrains(name)]
        if len(forms) > 1:
            raise refusal(
                "invalid_value",
                f"'{{param}}' and '{forms[0]}' both say what the answer must be.",
                at=forms[1],
                suggestions=(f"Leave out '{forms[0]}' or '{forms[1]}'.",),
            )
        return self

    def _constrains(self, name: str) -> bool:
        value: object = self
        for part in name.split("."):
            value = getattr(value, part, None)
        return value is not None and getattr(value, "type", "") != "text"


class SamplingRequest(Sampling):
    """What a request for a completion of any kind may say; ``None`` everywhere means that the client did not say."""

    ignored_on_purpose: ClassVar[Mapping[str, str]] = {
        "user": "Jackfield keeps no record of end users.",
        "cache_prompt": "The prefix cache is always on, and never changes an answer.",
        "stream_options.include_obfuscation": "Jackfield does not pad its streams.",
    }

    n: Choices | None = None
    max_tokens: TokenLimit | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    cache_prompt: bool | None = None

    @property
    def token_limit(self) -> int | None:
        """How many tokens the client wants at most."""
        return self.max_tokens

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise no_stream()
        return self


def no_stream() -> PydanticCustomError:
    """What a request hears that has options for a stream and wants none."""
    return refusal(
        "invalid_value",
        "'{param}' is only allowed when 'stream' is true.",
        at="stream_options",
        suggestions=("Set 'stream' to true, or leave out 'stream_options'.",),
    )
