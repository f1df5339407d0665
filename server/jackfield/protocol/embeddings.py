"""``POST /v1/embeddings``."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jackfield.protocol.asking import ExtensionWanted, Priority, Timeout
from jackfield.protocol.base import AnswerModel, Integral, RequestBody, Text
from jackfield.protocol.extension import Extension
from jackfield.protocol.prompts import Inputs, each

Dimensions = Annotated[int, Field(ge=1), Integral]


class EmbeddingsRequest(RequestBody):
    """Texts whose vectors are wanted."""

    ignored_on_purpose: ClassVar = {"user": "Jackfield keeps no record of end users."}

    model: Text
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    priority: Priority | None = None
    timeout: Timeout | None = None
    jackfield: ExtensionWanted | None = None
    """Send an `Extension` with the vectors; an object also says something to plugins, each by its name."""
    user: str | None = None

    @property
    def wants_extension(self) -> bool:
        """Whether the answer is to say how it came about."""
        return self.jackfield is not None and self.jackfield is not False

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts, however they were written."""
        return each(self.input)


class Embedding(AnswerModel):
    """A text's vector, of length 1."""

    always: ClassVar = ("object",)

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """In base64: float32, little-endian."""


class EmbeddingUsage(AnswerModel):
    """How many tokens the texts have."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(AnswerModel):
    """All vectors, in the order of the texts."""

    always: ClassVar = ("object",)
    never_null: ClassVar = ("jackfield",)

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    jackfield: Extension | None = None
