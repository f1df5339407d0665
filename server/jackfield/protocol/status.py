"""Whether the server lives, and whether it can answer."""

from typing import ClassVar, Literal

from jackfield.protocol.base import AnswerModel


class Health(AnswerModel):
    """The process is alive."""

    always: ClassVar = ("status",)

    status: Literal["ok"] = "ok"


class Ready(AnswerModel):
    """Models are loaded and requests are welcome."""

    always: ClassVar = ("status",)

    status: Literal["ready"] = "ready"
    models: list[str]
