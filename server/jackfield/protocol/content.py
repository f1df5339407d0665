"""The content of a message: a string, or a list of parts."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from jackfield.protocol.base import KnownTag, TolerantModel, by_key, by_kind


class TextPart(TolerantModel):
    """Text."""

    type: Literal["text"]
    text: str


class RefusalPart(TolerantModel):
    """What an assistant said when it refused."""

    type: Literal["refusal"]
    refusal: str


Detail = Literal["auto", "low", "high", "original"]
"""The last is known to OpenAI's Responses alone, and says the same as ``high`` here."""


class ImageUrl(TolerantModel):
    """Where the image is: an address or a ``data:`` URL."""

    url: str
    detail: Detail | None = None


class ImagePart(TolerantModel):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(TolerantModel):
    """Sound, in base64."""

    data: str
    format: str


class AudioPart(TolerantModel):
    """Sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class InputFile(TolerantModel):
    """A file: uploaded before, or in base64."""

    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class FilePart(TolerantModel):
    """A file."""

    type: Literal["file"]
    file: InputFile


ContentPart = Annotated[
    Annotated[TextPart, Tag("=text")]
    | Annotated[RefusalPart, Tag("=refusal")]
    | Annotated[ImagePart, Tag("=image_url")]
    | Annotated[AudioPart, Tag("=input_audio")]
    | Annotated[FilePart, Tag("=file")],
    by_key("type"),
    KnownTag("type", ("text", "refusal", "image_url", "input_audio", "file")),
]
Content = Annotated[
    Annotated[str, Tag("=string")] | Annotated[list[ContentPart], Field(fail_fast=True), Tag("=array")],
    by_kind({str: "=string", list: "=array"}, "a string or an array of content parts"),
]
