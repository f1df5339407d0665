"""The one shape of every error; `jackfield.errors` fills it."""

from jackfield.protocol.base import AnswerModel


class ErrorDetails(AnswerModel):
    """What went wrong, where, and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str | None
    category: str
    suggestions: list[str]


class ErrorEnvelope(AnswerModel):
    """The body of every answer of 400 and above, and of an event when a stream breaks."""

    error: ErrorDetails
