"""``POST /v1/chat/completions``."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from jackfield.protocol.base import AnswerModel, Integral, JsonObject, Unsupported, refusal
from jackfield.protocol.content import ContentPart, ImagePart, ImageUrl, RefusalPart, TextPart
from jackfield.protocol.formats import ResponseFormat
from jackfield.protocol.generation import GenerationAnswer
from jackfield.protocol.logprobs import ChatLogprobs
from jackfield.protocol.messages import AssistantMessage, Message
from jackfield.protocol.sampling import SamplingRequest, TokenLimit
from jackfield.protocol.tools import NamedToolChoice, Tool, ToolChoice
from jackfield.protocol.usage import Usage

TopLogprobs = Annotated[int, Field(ge=0, le=20), Integral]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
FinishReason = Literal["stop", "length", "tool_calls"]


def _not_audio(modality: Any) -> Any:
    if modality == "audio":
        message = "Invalid value for '{param}': 'audio' is not supported here."
        raise refusal("unsupported_value", message, suggestions=("Ask for ['text'].",))
    return modality


Modality = Annotated[Literal["text"], BeforeValidator(_not_audio)]


class ChatCompletionRequest(SamplingRequest):
    """A conversation to go on with."""

    ignored_on_purpose: ClassVar = {
        **SamplingRequest.ignored_on_purpose,
        "safety_identifier": "Jackfield keeps no record of end users.",
        "metadata": "Jackfield stores no completions, so there is nothing to attach it to.",
        "store": "Jackfield stores no completions.",
        "service_tier": "There is one tier here.",
        "prompt_cache_key": "The prefix cache finds common prefixes by itself.",
        "prompt_cache_retention": "The prefix cache keeps what its memory allows.",
        "prompt_cache_options": "The prefix cache finds common prefixes by itself.",
        "verbosity": "The models served here know no such setting.",
        "prediction": "A prediction makes an answer faster, never different.",
    }

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: JsonObject | None = None
    continue_final_message: bool | None = None
    """The last message is the model's own, and the answer goes on with it."""
    modalities: Annotated[list[Modality], Field(min_length=1)] | None = None

    safety_identifier: str | None = None
    metadata: JsonObject | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonObject | None = None
    verbosity: str | None = None
    prediction: JsonObject | None = None

    audio: Annotated[None, Unsupported("Ask for text: the models served here do not speak.")] = None
    web_search_options: Annotated[None, Unsupported("Offer a search function in 'tools'.")] = None
    moderation: Annotated[None, Unsupported("Moderate before or after the call: no model here does it.")] = None
    functions: Annotated[None, Unsupported("Use 'tools', with {'type': 'function', 'function': {...}}.")] = None
    function_call: Annotated[None, Unsupported("Use 'tool_choice'.")] = None

    @property
    def token_limit(self) -> int | None:
        """How many tokens the client wants at most: two names for one limit, and both are kept."""
        limits = [limit for limit in (self.max_completion_tokens, self.max_tokens) if limit is not None]
        return min(limits, default=None)

    def media(self) -> Iterator[tuple[str, str]]:
        """Every content part that is not text, as its path in the request and its type."""
        for path, part in self._parts():
            if not isinstance(part, TextPart | RefusalPart):
                yield path, part.type

    def images(self) -> Iterator[tuple[str, ImageUrl]]:
        """Every image, in order, with its path in the request."""
        for path, part in self._parts():
            if isinstance(part, ImagePart):
                yield path, part.image_url

    def _parts(self) -> Iterator[tuple[str, ContentPart]]:
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
                yield f"messages.{i}.content.{j}", part

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refusal(
                "invalid_value",
                "'{param}' is only allowed when 'logprobs' is true.",
                at="top_logprobs",
                suggestions=("Set 'logprobs' to true, or leave out 'top_logprobs'.",),
            )
        return self

    @model_validator(mode="after")
    def _tool_choice_needs_that_tool(self) -> Self:
        if self.tool_choice == "required" and not self.tools:
            raise refusal("invalid_value", "'{param}' is 'required', but there are no 'tools'.", at="tool_choice")
        if isinstance(self.tool_choice, NamedToolChoice):
            self._check_named(self.tool_choice.function.name)
        return self

    @model_validator(mode="after")
    def _only_its_own_message_goes_on(self) -> Self:
        last = self.messages[-1]
        if self.continue_final_message and (not isinstance(last, AssistantMessage) or last.tool_calls):
            raise refusal(
                "invalid_value",
                "'{param}' is only allowed when the last message is the assistant's, without 'tool_calls'.",
                at="continue_final_message",
                suggestions=("Send the beginning of the answer as the last message, or leave the field out.",),
            )
        return self

    def _check_named(self, name: str) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if name not in names:
            raise refusal(
                "invalid_value",
                "'{param}' names a function that is not in 'tools'.",
                at="tool_choice.function.name",
                suggestions=(f"Use one of: {', '.join(names)}." if names else "Send the function in 'tools'.",),
            )


class FunctionCall(AnswerModel):
    """The function the model calls, its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(AnswerModel):
    """A call the model makes."""

    always: ClassVar = ("type",)

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(AnswerModel):
    """The model's answer."""

    always: ClassVar = ("role", "refusal", "annotations")
    never_null: ClassVar = ("reasoning_content", "reasoning", "tool_calls")

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    reasoning_content: str | None = None
    """What the model thought before it spoke; clients know it by either name."""
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(AnswerModel):
    """One of the answers asked for."""

    always: ClassVar = ("logprobs",)

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(GenerationAnswer):
    """The answer when it does not stream."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class FunctionCallDelta(AnswerModel):
    """More of a call: the name comes once, the arguments in pieces."""

    never_null: ClassVar = ("name", "arguments")

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(AnswerModel):
    """More of a call; ``id``, ``type`` and the name come with its first piece."""

    never_null: ClassVar = ("id", "type", "function")

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta | None = None


class ChatDelta(AnswerModel):
    """What a chunk adds to the message."""

    never_null: ClassVar = ("role", "reasoning_content", "reasoning", "tool_calls")

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(AnswerModel):
    """What a chunk adds to one of the answers."""

    always: ClassVar = ("logprobs", "finish_reason")

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(GenerationAnswer):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
