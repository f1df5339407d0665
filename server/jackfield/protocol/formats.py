"""The shape that an answer must have."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from jackfield.protocol.base import JsonObject, KnownTag, RequestModel, Text, by_key


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(RequestModel):
    """A JSON Schema and its name."""

    name: Text
    description: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(RequestModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("=text")]
    | Annotated[JsonObjectFormat, Tag("=json_object")]
    | Annotated[JsonSchemaFormat, Tag("=json_schema")],
    by_key("type"),
    KnownTag("type", ("text", "json_object", "json_schema")),
]
