"""The models served here, as OpenAI's clients know them and as Anthropic's do, side by side."""

from typing import ClassVar, Literal

from jackfield.protocol.base import AnswerModel, RequestBody, Text


class ModelRequest(RequestBody):
    """A model that is to come into memory, or to leave it, as llama.cpp's server is asked."""

    model: Text


class ModelReport(AnswerModel):
    """What no other dialect has a place for."""

    never_null: ClassVar = ("capabilities", "weights_bytes", "progress", "failure")

    state: Literal["unloaded", "loading", "ready", "recovering", "stopped", "failed", "remote"]
    """Models that are not in memory are loaded when somebody asks for them; other servers answer for remote ones."""
    aliases: list[str]
    pinned: bool
    """Whether it stays in memory."""
    capabilities: list[str] | None = None
    """Left out as long as it is not known what it can do: it has to be downloaded first."""
    weights_bytes: int | None = None
    """What its weights take, while it is in memory."""
    progress: float | None = None
    """How much of it has been downloaded, from 0 to 1, while it is."""
    failure: str | None = None
    """Why it could not be loaded, if it could not."""


class Model(AnswerModel):
    """A model; its context length under several names, since clients look for any of them."""

    always: ClassVar = ("object", "type", "capabilities", "lifecycle")
    never_null: ClassVar = ("context_length", "max_model_len", "parent")

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int | None = None
    """Not known of a model that has to be downloaded first; left out then."""
    max_model_len: int | None = None
    parent: str | None = None
    """Of an adapter, as vLLM tells it: the model that it changes."""

    type: Literal["model"] = "model"
    display_name: str
    created_at: str
    """As RFC 3339 has it."""
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: None = None
    lifecycle: Literal["active"] = "active"

    jackfield: ModelReport


class ModelList(AnswerModel):
    """All models; there is one page of them."""

    always: ClassVar = ("object", "has_more")

    object: Literal["list"] = "list"
    data: list[Model]

    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None
