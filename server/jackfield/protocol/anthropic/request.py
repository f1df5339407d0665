"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from jackfield.protocol.anthropic.content import ToolUseBlock
from jackfield.protocol.anthropic.messages import AssistantTurn, System, Turn
from jackfield.protocol.anthropic.tools import AnyToolChoice, MessagesTool, MessagesToolChoice, OneToolChoice
from jackfield.protocol.asking import Asking
from jackfield.protocol.base import (
    Integral,
    JsonObject,
    KnownTag,
    RequestBody,
    Text,
    TolerantModel,
    Unsupported,
    refusal,
)
from jackfield.protocol.sampling import Temperature, TopK, TopP

AnswerLimit = Annotated[int, Field(ge=0), Integral]
ThinkingBudget = Annotated[int, Field(ge=0), Integral]
Display = Literal["summarized", "omitted"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


class Thinking(TolerantModel):
    """Whether the model is to think before it speaks; how long, and between which calls, is its own affair."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: ThinkingBudget | None = None
    display: Display | None = None
    """Whether the answer says what it thought."""


class JsonOutput(TolerantModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


OutputFormat = Annotated[JsonOutput, KnownTag("type", ("json_schema",))]


class OutputConfig(TolerantModel):
    """What the answer must be, and how much thought to put into it."""

    effort: Effort | None = None
    format: OutputFormat | None = None
    task_budget: JsonObject | None = None


_IGNORED = {
    "cache_control": "The prefix cache finds common prefixes by itself.",
    "context_management": "The conversation stays as it is; a plugin may make it shorter where it is too long.",
    "speed": "There is one speed here.",
    "billing_policy": "Nobody is billed.",
    "output_config.task_budget": "The models served here know no such setting.",
    "thinking.budget_tokens": "The models served here think as long as they think.",
}


_STRUCTURED = "Use 'output_config' with {'format': {'type': 'json_schema', 'schema': {...}}}."
_HINTS = {
    "chat_template_kwargs": "Use 'thinking'.",
    "max_completion_tokens": "Use 'max_tokens'.",
    "max_output_tokens": "Use 'max_tokens'.",
    "parallel_tool_calls": "Use 'disable_parallel_tool_use' of 'tool_choice'.",
    "prompt": "Use 'messages'.",
    "reasoning_effort": "Use 'thinking', or 'effort' of 'output_config'.",
    "response_format": _STRUCTURED,
    "stop": "Use 'stop_sequences'.",
    "user": "Leave it out: Jackfield keeps no record of end users.",
}


class TokenCountRequest(RequestBody):
    """A conversation whose tokens are to be counted; ``None`` everywhere means that the client did not say."""

    hints: ClassVar[Mapping[str, str]] = _HINTS
    ignored_on_purpose: ClassVar[Mapping[str, str]] = {
        **_IGNORED,
        "compaction": "What is counted is the conversation as it was sent.",
    }

    model: Text
    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
    system: System | None = None
    tools: Annotated[list[MessagesTool], Field(fail_fast=True)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    cache_control: JsonObject | None = None
    context_management: JsonObject | None = None
    speed: str | None = None
    billing_policy: JsonObject | None = None
    compaction: JsonObject | None = None

    mcp_servers: Annotated[None, Unsupported("Offer what the servers do in 'tools', and call them yourself.")] = None
    thread: Annotated[None, Unsupported("Send the whole conversation in 'messages': Jackfield keeps none.")] = None

    @property
    def continues(self) -> bool:
        """Whether the last message is the model's own, to go on with."""
        return isinstance(self.messages[-1], AssistantTurn)

    @property
    def thinks(self) -> bool:
        """Whether the model is to think before it speaks, which it does only when it is asked to."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def schema_wanted(self) -> JsonObject | None:
        """What the answer must fit, by the newer name or the older one."""
        wanted = (self.output_config and self.output_config.format) or self.output_format
        return wanted.schema_ if wanted else None

    def ignored(self) -> dict[str, str]:
        """The fields of this request that change nothing, those of unknown betas included."""
        extra = ", ".join(name[:64] for name in list(self.model_extra or ())[:8])
        return super().ignored() | ({"fields of betas": f"Jackfield does not know {extra}."} if extra else {})

    @model_validator(mode="after")
    def _calls_are_answered(self) -> Self:
        content = self.messages[-1].content if self.continues else None
        if isinstance(content, list) and any(isinstance(block, ToolUseBlock) for block in content):
            raise refusal(
                "invalid_value",
                "Invalid value for '{param}': the last message calls tools, and nobody has answered.",
                at=f"messages.{len(self.messages) - 1}.content",
                suggestions=("Send what the tools answered in a user's message, in blocks of type 'tool_result'.",),
            )
        return self

    @model_validator(mode="after")
    def _tool_choice_needs_that_tool(self) -> Self:
        choice, names = self.tool_choice, [tool.name for tool in self.tools or ()]
        if isinstance(choice, AnyToolChoice) and not names:
            raise refusal("invalid_value", "'{param}' is 'any', but there are no 'tools'.", at="tool_choice.type")
        if isinstance(choice, OneToolChoice) and choice.name not in names:
            raise refusal(
                "invalid_value",
                "'{param}' names a tool that is not in 'tools'.",
                at="tool_choice.name",
                suggestions=(f"Use one of: {', '.join(names)}." if names else "Send the tool in 'tools'.",),
            )
        return self


class MessagesRequest(TokenCountRequest, Asking):
    """A conversation to go on with."""

    ignored_on_purpose: ClassVar = {
        **_IGNORED,
        "metadata": "Jackfield keeps no record of end users.",
        "service_tier": "There is one tier here.",
        "inference_geo": "The answer is given on this machine.",
        "diagnostics": "'jackfield' tells what the prefix cache gave, and why not more.",
        "fallbacks": "No model here declines a request.",
        "fallback_credit_token": "Nobody is billed.",
    }

    max_tokens: AnswerLimit
    """0 reads the prompt into the prefix cache, and answers nothing."""
    stop_sequences: Annotated[list[Text], Field(max_length=64)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None

    metadata: JsonObject | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    diagnostics: JsonObject | None = None
    fallbacks: str | list[JsonObject] | None = None
    fallback_credit_token: str | None = None

    container: Annotated[None, Unsupported("Run code yourself, and offer that in 'tools'.")] = None
    compaction: Annotated[None, Unsupported("Ask for a summary in a message.")] = None


class BetaTokenCountRequest(TokenCountRequest):
    """From clients that use betas, whose fields come and go: those that are not known here are ignored."""

    model_config = ConfigDict(extra="allow")


class BetaMessagesRequest(MessagesRequest):
    """From clients that use betas, whose fields come and go: those that are not known here are ignored."""

    model_config = ConfigDict(extra="allow")
