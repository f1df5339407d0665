"""What the answers of both endpoints have in common, whole ones and chunks."""

from collections.abc import Sequence
from typing import ClassVar

from jackfield.protocol.base import AnswerModel
from jackfield.protocol.extension import Extension
from jackfield.protocol.usage import Usage


class GenerationAnswer(AnswerModel):
    """An answer, or one event of a stream.

    ``usage`` is null in all chunks but the last when it was asked for, else absent; ``jackfield`` is in the last one.
    """

    always: ClassVar = ("object",)
    never_null: ClassVar = ("system_fingerprint", "jackfield")

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[AnswerModel]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    jackfield: Extension | None = None
