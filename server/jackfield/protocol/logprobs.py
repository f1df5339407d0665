"""Log probabilities: the chat endpoint's shape and the older one of completions."""

from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from jackfield.protocol.base import AnswerModel

LOWEST = -9999.0
"""OpenAI's number for a token that is next to impossible; JSON has no minus infinity."""


def _representable(value: float) -> float:
    return value if value > LOWEST else LOWEST


Logprob = Annotated[float, BeforeValidator(_representable)]


class TopLogprob(AnswerModel):
    """A token that might have stood here."""

    token: str
    logprob: Logprob
    bytes: list[int] | None


class TokenLogprob(AnswerModel):
    """A token of the answer, and the most likely ones in its place."""

    token: str
    logprob: Logprob
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(AnswerModel):
    """Log probabilities of a choice's tokens, or of a chunk's."""

    always: ClassVar = ("refusal",)

    content: list[TokenLogprob] | None
    refusal: None = None


class CompletionLogprobs(AnswerModel):
    """The same as four lists of one length; the first token of an echoed prompt has no log probability."""

    tokens: list[str]
    token_logprobs: list[Logprob | None]
    top_logprobs: list[dict[str, Logprob] | None]
    text_offset: list[int]
