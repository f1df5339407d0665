"""What ``POST /v1/messages`` and ``POST /v1/messages/count_tokens`` answer.

Official fields that say nothing here are sent all the same, as nulls: strict clients insist on them.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from jackfield.protocol.base import AnswerModel, JsonObject
from jackfield.protocol.extension import Extension

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class SaidText(AnswerModel):
    """Text."""

    always: ClassVar = ("type", "citations")

    type: Literal["text"] = "text"
    text: str
    citations: list[Any] = Field(default_factory=list, max_length=0)
    """Not null, which Anthropic's document allows and the AI SDK does not."""


class SaidThinking(AnswerModel):
    """What the model thought before it spoke; no text where the client wants none."""

    always: ClassVar = ("type",)

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class Caller(AnswerModel):
    """Who called: always the model itself."""

    always: ClassVar = ("type",)

    type: Literal["direct"] = "direct"


class SaidToolUse(AnswerModel):
    """A call that the model makes."""

    always: ClassVar = ("type", "caller")

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: JsonObject
    caller: Caller = Field(default_factory=Caller)


SaidBlock = Annotated[SaidText | SaidThinking | SaidToolUse, Field(discriminator="type")]


class ThinkingTokens(AnswerModel):
    """Of the generated tokens, those that the model spent on thinking."""

    thinking_tokens: int


class MessagesUsage(AnswerModel):
    """How many tokens a request took. The prompt's are the sum of three: read, from the cache, and for the cache."""

    always: ClassVar = (
        "cache_creation",
        "cache_creation_input_tokens",
        "inference_geo",
        "server_tool_use",
        "service_tier",
    )

    input_tokens: int
    """Those that were not in the prefix cache."""
    cache_read_input_tokens: int
    """Those that were."""
    cache_creation_input_tokens: Literal[0] = 0
    """None are counted apart: whatever is read goes into the cache."""
    output_tokens: int
    output_tokens_details: ThinkingTokens
    cache_creation: None = None
    inference_geo: None = None
    server_tool_use: None = None
    service_tier: Literal["standard"] = "standard"


class MessageAnswer(AnswerModel):
    """The answer when it does not stream."""

    always: ClassVar = ("type", "role", "stop_reason", "stop_sequence", "stop_details", "container")
    never_null: ClassVar = ("jackfield",)

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[SaidBlock]
    stop_reason: StopReason | None = None
    """None in the event that a stream begins with, and nowhere else."""
    stop_sequence: str | None = None
    """The one that ended the answer."""
    stop_details: None = None
    container: None = None
    usage: MessagesUsage
    jackfield: Extension | None = None


class TokenCount(AnswerModel):
    """How many tokens the model would read."""

    input_tokens: int
