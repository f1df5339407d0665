"""``POST /v1/tokenize``, ``/v1/detokenize``, ``/v1/apply-template`` and ``GET /v1/tokenizer_info``.

vLLM and llama.cpp have endpoints of the same names. Their fields stand side by side here, since they do not contradict
each other: ``prompt`` and ``messages`` are vLLM's, ``content`` is llama.cpp's, and each brings its own defaults.
"""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from jackfield.protocol.base import AnswerModel, JsonObject, RequestBody, Text, refusal
from jackfield.protocol.chat import ReasoningEffort
from jackfield.protocol.messages import Message
from jackfield.protocol.prompts import AnyTokenIds
from jackfield.protocol.tools import Tool

Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
Tools = Annotated[list[Tool], Field(fail_fast=True)]


class TemplateOptions(RequestBody):
    """What besides the messages makes a conversation's prompt."""

    model: Text | None = None
    """The only model that is served, unless it is named."""
    tools: Tools | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    """Go on to where the answer begins."""
    continue_final_message: bool | None = None
    """Leave the last message open, for the model to go on with."""

    @property
    def begins_answer(self) -> bool:
        """Whether the prompt goes on to where an answer begins."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    @model_validator(mode="after")
    def _ends_in_one_way(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            raise refusal(
                "invalid_value",
                "'{param}' is only allowed when 'add_generation_prompt' is not true.",
                at="continue_final_message",
                suggestions=("Leave out one of the two.",),
            )
        return self


class ApplyTemplateRequest(TemplateOptions):
    """A conversation whose prompt is wanted as text."""

    messages: Messages


class TokenizeRequest(TemplateOptions):
    """A text or a conversation whose tokens are wanted."""

    prompt: str | None = None
    content: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None

    @property
    def text(self) -> str:
        """The text, by either name; of a conversation there is none yet."""
        return self.prompt or self.content or ""

    @property
    def special(self) -> bool:
        """Whether to add the tokens that the model expects around a text."""
        chosen = self.add_special if self.add_special_tokens is None else self.add_special_tokens
        return self.prompt is not None if chosen is None else chosen

    @model_validator(mode="after")
    def _is_about_one_thing(self) -> Self:
        given = [name for name in ("prompt", "content", "messages") if getattr(self, name) is not None]
        if not given:
            raise refusal(
                "missing_required_parameter",
                "Missing required parameter: '{param}'.",
                at="prompt",
                suggestions=("Send a text as 'prompt' or 'content', or a conversation as 'messages'.",),
            )
        if len(given) > 1:
            raise _only_without(given[1], given[0])
        return self

    @model_validator(mode="after")
    def _templates_are_for_conversations(self) -> Self:
        if self.messages is None:
            for name in TemplateOptions.model_fields.keys() - {"model"}:
                if getattr(self, name) is not None:
                    raise refusal("invalid_value", "'{param}' is only allowed with 'messages'.", at=name)
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        both = (self.add_special_tokens, self.add_special)
        if None not in both and both[0] != both[1]:
            raise refusal("invalid_value", "'{param}' contradicts 'add_special_tokens'.", at="add_special")
        return self


def _only_without(name: str, other: str) -> Exception:
    message = f"'{{param}}' is not allowed together with '{other}'."
    return refusal("invalid_value", message, at=name, suggestions=("Send one of the two.",))


class Piece(AnswerModel):
    """A token and its text, or its bytes where they are no text of their own."""

    id: int
    piece: str | list[int]


class Tokens(AnswerModel):
    """The tokens of a text."""

    always: ClassVar = ("token_strs",)

    count: int
    max_model_len: int | None
    """None where another server has counted that does not tell."""
    tokens: list[int] | list[Piece]
    token_strs: list[str] | None = None
    """As the vocabulary writes them."""


class DetokenizeRequest(RequestBody):
    """Tokens whose text is wanted."""

    model: Text | None = None
    tokens: AnyTokenIds


class Detokenized(AnswerModel):
    """The text of tokens, by vLLM's name and by llama.cpp's."""

    prompt: str
    content: str


class TemplateApplied(AnswerModel):
    """The prompt that a conversation becomes."""

    prompt: str


class TokenizerInfo(AnswerModel):
    """What ``tokenizer_config.json`` would say, as far as evaluation tools ask for it."""

    model: str
    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    model_max_length: int | None
    """None where another server has told of it that does not say."""
