"""From a request's items to a conversation in the words of ``/v1/chat/completions``, and back for errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jackfield.api.responses.toolbox import Toolbox, visible
from jackfield.errors import InvalidRequestError, JackfieldError
from jackfield.protocol.base import JsonObject
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.content import RefusalPart
from jackfield.protocol.formats import JsonObjectFormat
from jackfield.protocol.responses.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputFilePart,
    InputImagePart,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
)
from jackfield.protocol.responses.request import JsonSchemaFormat, ResponseRequest
from jackfield.protocol.sampling import Sampling

Placed = tuple[str, Item]
"""An item, and where it stands in the request."""


def chat_request(
    asked: ResponseRequest, items: Iterable[Placed], tools: Toolbox
) -> "tuple[ChatCompletionRequest, Places]":
    """The same request in other words, and where all that it says stands in ``asked``.

    Args:
        asked: the request.
        items: the conversation, from its beginning.
        tools: the request's functions.

    Raises:
        InvalidRequestError: there is nothing to answer, or nobody has what it refers to.
    """
    conversation = _Messages()
    if asked.instructions is not None:
        conversation.add({"role": "system", "content": asked.instructions}, "instructions")
    for place, item in items:
        conversation.add_item(item, place)
    messages, places = conversation.finish()
    if not messages:
        raise InvalidRequestError(
            "There is nothing to answer: 'input' is empty.",
            param="input",
            code="empty_array",
            suggestions=("Send a message in 'input'.",),
        )
    document = {
        **asked.model_dump(include=set(Sampling.model_fields) - {"jackfield"}, exclude_none=True),
        "messages": messages,
        "max_tokens": asked.max_output_tokens,
        "logprobs": asked.wants_logprobs or None,
        "top_logprobs": asked.top_logprobs,
        "tools": tools.tools() or None,
        "tool_choice": tools.choice(),
        "parallel_tool_calls": asked.parallel_tool_calls,
        "response_format": _response_format(asked),
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "chat_template_kwargs": asked.chat_template_kwargs,
    }
    known = {name: value for name, value in document.items() if value is not None}
    return ChatCompletionRequest.model_validate(known), Places(places, tools.places())


def _response_format(asked: ResponseRequest) -> JsonObject | None:
    match asked.text.format if asked.text else None:
        case JsonObjectFormat():
            return {"type": "json_object"}
        case JsonSchemaFormat() as flat:
            schema = flat.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
            return {"type": "json_schema", "json_schema": schema}
    return None


@dataclass
class _Messages:
    """Messages as they come together: what an assistant thought, said and called in one turn is one of them."""

    _messages: list[JsonObject] = field(default_factory=list)
    _places: list[str] = field(default_factory=list)

    def add(self, message: JsonObject, place: str) -> JsonObject:
        """One more."""
        self._messages.append(message)
        self._places.append(place)
        return message

    def add_item(self, item: Item, place: str) -> None:
        """What an item says."""
        match item:
            case MessageItem():
                content = place if place == "input" else f"{place}.content"
                self._said(item.role, _content(item.content, content), content)
            case ReasoningItem() if item.thoughts:
                self.add({"role": "assistant", "reasoning_content": item.thoughts}, place)
            case FunctionCallItem():
                self._called(item, place)
            case FunctionCallOutputItem():
                output = _content(item.output, f"{place}.output")
                self.add({"role": "tool", "tool_call_id": item.call_id, "content": output}, f"{place}.output")

    def _said(self, role: str, content: str | list[JsonObject], place: str) -> None:
        last = self._last() if role == "assistant" else None
        if last is None or "content" in last or "tool_calls" in last:
            self.add({"role": role, "content": content}, place)
        else:
            last["content"] = content
            self._places[-1] = place

    def _called(self, item: FunctionCallItem, place: str) -> None:
        last = self._last()
        if last is None:
            last = self.add({"role": "assistant"}, place)
        function = {"name": visible(item.namespace, item.name), "arguments": item.arguments}
        last.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})

    def _last(self) -> JsonObject | None:
        """The message that an assistant may go on with."""
        return self._messages[-1] if self._messages and self._messages[-1]["role"] == "assistant" else None

    def finish(self) -> tuple[list[JsonObject], list[str]]:
        """All messages, without thoughts that led to nothing, and their places."""
        kept = [
            (message, place)
            for message, place in zip(self._messages, self._places, strict=True)
            if message["role"] != "assistant" or "content" in message or "tool_calls" in message
        ]
        return [message for message, _ in kept], [place for _, place in kept]


def _content(content: str | Sequence[Part], place: str) -> str | list[JsonObject]:
    if isinstance(content, str):
        return content
    return [_part(part, f"{place}.{index}") for index, part in enumerate(content)]


def _part(part: Part, place: str) -> JsonObject:
    match part:
        case InputImagePart():
            if part.image_url is None:
                raise _no_file(place, "image_url")
            detail = "high" if part.detail == "original" else part.detail
            return {"type": "image_url", "image_url": {"url": part.image_url, "detail": detail}}
        case InputFilePart():
            if part.file_data is None:
                raise _no_file(place, "file_data")
            return {"type": "file", "file": {"file_data": part.file_data, "filename": part.filename}}
        case RefusalPart():
            return {"type": "refusal", "refusal": part.refusal}
    return {"type": "text", "text": part.text}


def _no_file(place: str, field_name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing '{place}.{field_name}': there are no files here to refer to.",
        param=f"{place}.{field_name}",
        code="missing_required_parameter",
        suggestions=(f"Send it in '{field_name}', as a data URL.",),
    )


# --- Errors ----------------------------------------------------------------------------------------------------------

_RENAMED: Mapping[str, str] = {
    "response_format.json_schema.schema": "text.format.schema",
    "max_tokens": "max_output_tokens",
}


@dataclass(frozen=True)
class Places:
    """Where in a request stands what its chat request consists of."""

    messages: Sequence[str]
    """Of each its content."""
    tools: Sequence[str]

    def of(self, param: str) -> str:
        """What the chat request calls ``param``."""
        kind, _, rest = param.partition(".")
        index, _, inside = rest.partition(".")
        if kind == "messages":
            return f"{self.messages[int(index)]}{inside.removeprefix('content')}" if index.isdecimal() else "input"
        if kind == "tools" and index.isdecimal():
            return f"{self.tools[int(index)]}.{inside.removeprefix('function.')}".rstrip(".")
        return _RENAMED.get(param, param)

    def tell(self, error: JackfieldError) -> None:
        """Make an error at the chat request speak of the request that it was made from."""
        if error.param is not None:
            place = self.of(error.param)
            error.message = error.message.replace(error.param, place)
            error.param = place
