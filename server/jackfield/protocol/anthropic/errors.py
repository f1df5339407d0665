"""The one shape of every error of these endpoints; `jackfield.api.envelope` fills it."""

from typing import ClassVar, Literal

from jackfield.protocol.base import AnswerModel

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
]


class ErrorCode(AnswerModel):
    """The error in a word, for programs."""

    error_code: str


class MessagesErrorDetails(AnswerModel):
    """What went wrong, where, and what to do about it."""

    never_null: ClassVar = ("details",)

    type: ErrorType
    message: str
    param: str | None
    category: str
    suggestions: list[str]
    details: ErrorCode | None = None


class MessagesErrorEnvelope(AnswerModel):
    """The body of every answer of 400 and above, and of an event when a stream breaks."""

    always: ClassVar = ("type",)

    type: Literal["error"] = "error"
    error: MessagesErrorDetails
    request_id: str
