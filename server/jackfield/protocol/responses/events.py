"""``POST /v1/responses`` with ``stream: true``: its events, in OpenAI's words."""

from typing import ClassVar, Literal

from jackfield.protocol.base import AnswerModel
from jackfield.protocol.errors import ErrorDetails
from jackfield.protocol.logprobs import TokenLogprob
from jackfield.protocol.responses.answer import OutputItem, OutputText, ReasoningText, Response, SummaryText


class Event(AnswerModel):
    """One event; they are numbered from 0."""

    always: ClassVar = ("type",)

    type: str
    sequence_number: int


class ResponseEvent(Event):
    """How the response stands: at the beginning, and when it has ended one way or another."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: Response


class OutputItemEvent(Event):
    """An item begins, or has ended."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _InItem(Event):
    output_index: int
    item_id: str


class _InPart(_InItem):
    content_index: int


class ContentPartEvent(_InPart):
    """A part of an item begins, or has ended."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText | ReasoningText


class OutputTextDelta(_InPart):
    """More text."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    delta: str
    logprobs: list[TokenLogprob]


class OutputTextDone(_InPart):
    """The whole text of a part."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    text: str
    logprobs: list[TokenLogprob]


class ReasoningTextDelta(_InPart):
    """More thoughts."""

    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    delta: str


class ReasoningTextDone(_InPart):
    """All thoughts of a part."""

    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    text: str


class _InSummary(_InItem):
    summary_index: int


class SummaryPartEvent(_InSummary):
    """A part of a summary begins, or has ended."""

    type: Literal["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]
    part: SummaryText


class SummaryTextDelta(_InSummary):
    """More thoughts, where they were asked for as a summary."""

    type: Literal["response.reasoning_summary_text.delta"] = "response.reasoning_summary_text.delta"
    delta: str


class SummaryTextDone(_InSummary):
    """All thoughts of a part of a summary."""

    type: Literal["response.reasoning_summary_text.done"] = "response.reasoning_summary_text.done"
    text: str


class ArgumentsDelta(_InItem):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    delta: str


class ArgumentsDone(_InItem):
    """All of a call's arguments."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str


class ErrorEvent(Event):
    """The response has failed before it said anything; `ResponseEvent` follows.

    OpenAI's document has the fields at the top, its server sends them in ``error``: clients find them in both places.
    """

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None
    error: ErrorDetails
