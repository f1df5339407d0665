"""``POST /v1/responses``: the request."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, Tag, model_validator

from jackfield.protocol.base import JsonObject, KnownTag, RequestModel, Text, Unsupported, by_key, refusal
from jackfield.protocol.chat import ReasoningEffort, TopLogprobs
from jackfield.protocol.formats import JsonObjectFormat, JsonSchema, TextFormat
from jackfield.protocol.responses.items import Input
from jackfield.protocol.responses.tools import (
    AllowedTools,
    FunctionChoice,
    FunctionTool,
    NamespaceTool,
    SearchTool,
    Tool,
    ToolChoice,
)
from jackfield.protocol.sampling import Sampling, TokenLimit, no_stream

Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Summary = Literal["auto", "concise", "detailed"]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


_LIMIT = "Use 'max_output_tokens'."
_SHAPE = "Use 'text': {'format': {'type': 'json_schema', 'name': ..., 'schema': {...}}}."


class JsonSchemaFormat(JsonSchema):
    """JSON that fits a schema, described flatly."""

    type: Literal["json_schema"]


TextShape = Annotated[
    Annotated[TextFormat, Tag("=text")]
    | Annotated[JsonObjectFormat, Tag("=json_object")]
    | Annotated[JsonSchemaFormat, Tag("=json_schema")],
    by_key("type"),
    KnownTag("type", ("text", "json_object", "json_schema")),
]


class TextOptions(RequestModel):
    """What the text is to be like."""

    format: TextShape | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(RequestModel):
    """How the model is to think, and whether its thoughts are sent as a summary."""

    effort: ReasoningEffort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    """The former name of ``summary``."""
    context: str | None = None
    mode: str | None = None


class ResponseStreamOptions(RequestModel):
    """Options that are only allowed together with ``stream: true``."""

    include_obfuscation: bool | None = None
    reasoning_summary_delivery: str | None = None


class ResponseRequest(Sampling):
    """A conversation to go on with, as items."""

    ignored_on_purpose: ClassVar[Mapping[str, str]] = {
        "access_programs": "There are no such programs here.",
        "client_metadata": "Jackfield keeps no record of clients.",
        "image": "Images are sent to the model as they are.",
        "max_tool_calls": "It limits tools that run on the server, and there are none here.",
        "prompt_cache_key": "The prefix cache finds common prefixes by itself.",
        "prompt_cache_options": "The prefix cache finds common prefixes by itself.",
        "prompt_cache_retention": "The prefix cache keeps what its memory allows.",
        "reasoning.context": "All thoughts that a request brings go to the model's chat template.",
        "reasoning.mode": "The models served here know no such setting.",
        "safety_identifier": "Jackfield keeps no record of end users.",
        "service_tier": "There is one tier here.",
        "stream_options.include_obfuscation": "Jackfield does not pad its streams.",
        "stream_options.reasoning_summary_delivery": "Thoughts are sent as they come.",
        "text.verbosity": "The models served here know no such setting.",
        "user": "Jackfield keeps no record of end users.",
    }

    shape: ClassVar[str] = "text.format"
    hints: ClassVar[Mapping[str, str]] = {
        "format": _SHAPE,
        "guided_json": _SHAPE,
        "input_items": "Use 'input'.",
        "json_schema": _SHAPE,
        "logprobs": "Use 'include': ['message.output_text.logprobs'].",
        "max_completion_tokens": _LIMIT,
        "max_new_tokens": _LIMIT,
        "max_tokens": _LIMIT,
        "messages": "Use 'input' here, or /v1/chat/completions.",
        "n": "Send the request again for another answer.",
        "reasoning_effort": "Use 'reasoning': {'effort': ...}.",
        "response_format": _SHAPE,
        "structured_outputs": _SHAPE,
        "system": "Use 'instructions'.",
        "verbosity": "Use 'text': {'verbosity': ...}.",
    }

    input: Input
    instructions: str | None = None
    previous_response_id: Text | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    include: list[Included] | None = None
    max_output_tokens: TokenLimit | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: JsonObject | None = None
    stream_options: ResponseStreamOptions | None = None

    access_programs: JsonObject | None = None
    client_metadata: JsonObject | None = None
    image: JsonObject | None = None
    max_tool_calls: TokenLimit | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    user: str | None = None

    background: Annotated[Literal[False] | None, Unsupported("Ask for a stream, or wait.", harmless=(False,))] = None
    background_options: Annotated[None, Unsupported("Ask for a stream, or wait.")] = None
    context_management: Annotated[None, Unsupported("Send less, or 'truncation': 'auto'.")] = None
    conversation: Annotated[None, Unsupported("Use 'previous_response_id', or send all items in 'input'.")] = None
    moderation: Annotated[None, Unsupported("Moderate before or after the call: no model here does it.")] = None
    prompt: Annotated[None, Unsupported("Send its text in 'instructions' and 'input'.")] = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer's text comes with log probabilities."""
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)

    @property
    def wants_sealed(self) -> bool:
        """Whether thoughts come in a form that can be brought back unread."""
        return "reasoning.encrypted_content" in (self.include or ())

    @property
    def summary(self) -> Summary | None:
        """Whether thoughts are sent as a summary, under either of its names."""
        return (self.reasoning.summary or self.reasoning.generate_summary) if self.reasoning else None

    def functions(self) -> Iterator[tuple[str, str | None, FunctionTool]]:
        """All functions that are offered, each with its place in the request and its namespace."""
        for index, tool in enumerate(self.tools or ()):
            if isinstance(tool, FunctionTool):
                yield f"tools.{index}", None, tool
            elif isinstance(tool, NamespaceTool):
                for inner, function in enumerate(tool.tools):
                    yield f"tools.{index}.tools.{inner}", tool.name, function

    def ignored(self) -> dict[str, str]:
        """The fields and the tools that change nothing, and why."""
        searches = {tool.type for tool in self.tools or () if isinstance(tool, SearchTool)}
        why = "Jackfield searches nothing, so the model is not told of it."
        return super().ignored() | {f"tools of type {kind}": why for kind in searches}

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise no_stream()
        return self

    @model_validator(mode="after")
    def _tool_choice_needs_tools(self) -> Self:
        names = {function.name for _, _, function in self.functions()}
        if self.tool_choice == "required" and not names:
            message = "'{param}' is 'required', but there are no functions in 'tools'."
            raise refusal("invalid_value", message, at="tool_choice")
        if isinstance(self.tool_choice, FunctionChoice):
            _check_named(self.tool_choice.name, names, "tool_choice.name")
        if isinstance(self.tool_choice, AllowedTools):
            for index, allowed in enumerate(self.tool_choice.tools):
                _check_named(allowed.name, names, f"tool_choice.tools.{index}.name")
        return self


def _check_named(name: str, names: set[str], at: str) -> None:
    if name not in names:
        raise refusal(
            "invalid_value",
            "'{param}' names a function that is not in 'tools'.",
            at=at,
            suggestions=(f"Use one of: {', '.join(sorted(names))}." if names else "Send the function in 'tools'.",),
        )
