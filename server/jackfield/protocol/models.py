"""The models served here."""

from typing import ClassVar, Literal

from jackfield.protocol.base import AnswerModel


class Model(AnswerModel):
    """A model; its context length under two names, since clients look for either."""

    always: ClassVar = ("object",)

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int
    max_model_len: int


class ModelList(AnswerModel):
    """All models."""

    always: ClassVar = ("object",)

    object: Literal["list"] = "list"
    data: list[Model]
