"""What fields are called in Anthropic's words, for errors that are found in those of ``/v1/chat/completions``."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jackfield.errors import InvalidRequestError
from jackfield.protocol.anthropic.content import DocumentBlock, DocumentContent, ImageBlock, ToolResultBlock
from jackfield.protocol.anthropic.request import TokenCountRequest
from jackfield.protocol.chat import ChatCompletionRequest

_FIELDS = (
    (re.compile(r"tools\.(\d+)\.function\.parameters"), r"tools.\1.input_schema"),
    (re.compile(r"response_format\.json_schema\.schema"), "output_config.format.schema"),
)


@contextmanager
def own_names(asked: TokenCountRequest, chat: ChatCompletionRequest) -> Iterator[None]:
    """Errors that are raised here name the field that the client knows."""
    try:
        yield
    except InvalidRequestError as error:
        if error.param and (own := _own_name(error.param, asked, chat)) != error.param:
            error.message = error.message.replace(error.param, own)
            error.param = own
        raise


def _own_name(param: str, asked: TokenCountRequest, chat: ChatCompletionRequest) -> str:
    # Images are the only parts that are not text, and they keep their order.
    images = zip((path for path, _ in chat.media()), _images(asked), strict=True)
    for path, own in images:
        if param == path or param.startswith(f"{path}."):
            return own
    for pattern, name in _FIELDS:
        param = pattern.sub(name, param)
    return param


def _images(asked: TokenCountRequest) -> Iterator[str]:
    for at, turn in enumerate(asked.messages):
        yield from _images_in(turn.content, f"messages.{at}.content")


def _images_in(content: str | Sequence[object] | None, path: str) -> Iterator[str]:
    for at, block in enumerate(() if content is None or isinstance(content, str) else content):
        match block:
            case ImageBlock():
                yield f"{path}.{at}"
            case ToolResultBlock():
                yield from _images_in(block.content, f"{path}.{at}.content")
            case DocumentBlock(source=DocumentContent(content=inner)):
                yield from _images_in(inner, f"{path}.{at}.source.content")
