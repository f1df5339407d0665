"""``/v1/responses``: the answer, and what is stored of it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag

from jackfield.protocol.base import AnswerModel, JsonObject, by_key
from jackfield.protocol.extension import Extension
from jackfield.protocol.logprobs import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(AnswerModel):
    """Text that the model wrote."""

    always: ClassVar = ("type", "annotations", "logprobs")

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[JsonObject] = Field(default_factory=list, max_length=0)
    logprobs: list[TokenLogprob] = Field(default_factory=list)
    """Of its tokens, if they were asked for."""


class OutputMessage(AnswerModel):
    """What the model says."""

    always: ClassVar = ("type", "role")

    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class SummaryText(AnswerModel):
    """Thoughts that the client has asked for as a summary: all of them."""

    always: ClassVar = ("type",)

    type: Literal["summary_text"] = "summary_text"
    text: str


class ReasoningText(AnswerModel):
    """Thoughts."""

    always: ClassVar = ("type",)

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class Reasoning(AnswerModel):
    """What the model thought before it went on; either ``summary`` or ``content`` holds it."""

    always: ClassVar = ("type",)
    never_null: ClassVar = ("content", "encrypted_content")

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus
    summary: list[SummaryText]
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


class OutputFunctionCall(AnswerModel):
    """A call that the model makes, its arguments as JSON text."""

    always: ClassVar = ("type",)
    never_null: ClassVar = ("namespace",)

    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


OutputItem = Annotated[
    Annotated[OutputMessage, Tag("=message")]
    | Annotated[Reasoning, Tag("=reasoning")]
    | Annotated[OutputFunctionCall, Tag("=function_call")],
    by_key("type"),
]


class InputTokensDetails(AnswerModel):
    """Of the prompt's tokens, those that came from the prefix cache; writing to it costs nothing, so none count."""

    always: ClassVar = ("cache_write_tokens",)

    cached_tokens: int
    cache_write_tokens: Literal[0] = 0


class OutputTokensDetails(AnswerModel):
    """Of the generated tokens, those that the model spent on thinking."""

    reasoning_tokens: int


class ResponseUsage(AnswerModel):
    """How many tokens a response took."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(AnswerModel):
    """Why a response is not complete: its tokens or its time were over, or the engine failed in the middle."""

    always: ClassVar = ("reason",)

    reason: Literal["max_output_tokens"] = "max_output_tokens"


ErrorCode = Literal["server_error", "rate_limit_exceeded"]


class ResponseError(AnswerModel):
    """Why there is no response."""

    code: ErrorCode
    message: str


class ReasoningEcho(AnswerModel):
    """How the model was to think."""

    effort: str | None
    summary: str | None


class TextEcho(AnswerModel):
    """What the text was to be like."""

    format: JsonObject
    verbosity: str


class Response(AnswerModel):
    """A response, whole or in the making; what the request said comes back in it."""

    always: ClassVar = (
        "object",
        "background",
        "completed_at",
        "error",
        "incomplete_details",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "previous_response_id",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "usage",
    )
    never_null: ClassVar = ("user", "jackfield")

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    store: bool
    """Whether it is stored."""
    previous_response_id: str | None = None
    instructions: str | None = None
    metadata: dict[str, str]
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    tools: list[JsonObject]
    """Those that the model was told of, as the request had them."""
    tool_choice: str | JsonObject
    parallel_tool_calls: bool
    text: TextEcho
    reasoning: ReasoningEcho
    truncation: Literal["auto", "disabled"]
    temperature: float
    top_p: float
    top_logprobs: int
    frequency_penalty: float
    presence_penalty: float
    background: Literal[False] = False
    service_tier: Literal["default"] = "default"
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    jackfield: Extension | None = None


class DeletedResponse(AnswerModel):
    """A response that is no longer stored."""

    always: ClassVar = ("object", "deleted")

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(AnswerModel):
    """Some of the items that a stored response was made from."""

    always: ClassVar = ("object",)

    object: Literal["list"] = "list"
    data: list[JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
