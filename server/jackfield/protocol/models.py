"""The models served here, as OpenAI's clients know them and as Anthropic's do, side by side."""

from typing import ClassVar, Literal

from jackfield.protocol.base import AnswerModel


class Model(AnswerModel):
    """A model; its context length under several names, since clients look for any of them."""

    always: ClassVar = ("object", "type", "capabilities", "lifecycle")

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int
    max_model_len: int

    type: Literal["model"] = "model"
    display_name: str
    created_at: str
    """As RFC 3339 has it."""
    max_input_tokens: int
    max_tokens: int
    capabilities: None = None
    lifecycle: Literal["active"] = "active"


class ModelList(AnswerModel):
    """All models; there is one page of them."""

    always: ClassVar = ("object", "has_more")

    object: Literal["list"] = "list"
    data: list[Model]

    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None
