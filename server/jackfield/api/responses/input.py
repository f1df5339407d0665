"""The items of a request: gathered from where they are, and in the form in which they are stored and listed."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from jackfield.api.responses.conversion import Placed
from jackfield.api.responses.output import new_id
from jackfield.errors import InvalidRequestError
from jackfield.protocol.base import JsonObject
from jackfield.protocol.content import RefusalPart
from jackfield.protocol.responses.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputFilePart,
    InputImagePart,
    InputItem,
    Item,
    ItemReference,
    MessageItem,
    Part,
    ReasoningItem,
)
from jackfield.protocol.responses.request import ResponseRequest
from jackfield.recent_items import RecentItems
from jackfield.response_store import MissingResponseError, ResponseStore

_ITEM: TypeAdapter[Any] = TypeAdapter(InputItem)
_STORE = "Responses are stored when their requests have 'store': true; see also the setting store_responses."


async def earlier(asked: ResponseRequest, store: ResponseStore, owner: str) -> list[Placed]:
    """The items of the responses that a request goes on from.

    Raises:
        InvalidRequestError: they are not stored.
    """
    place = "previous_response_id"
    if asked.previous_response_id is None:
        return []
    try:
        stored = await store.conversation(owner, asked.previous_response_id)
    except MissingResponseError as error:
        raise InvalidRequestError(
            f"Previous response with id {error.response!r} not found.",
            param=place,
            code="previous_response_not_found",
            suggestions=("Send the whole conversation in 'input'.", _STORE),
        ) from None
    return [(place, _ITEM.validate_python(item)) for item in stored]


async def own(asked: ResponseRequest, store: ResponseStore, recent: RecentItems, owner: str) -> list[Placed]:
    """The request's own items, with what references stand for.

    Raises:
        InvalidRequestError: it is neither stored nor recent.
    """
    if isinstance(asked.input, str):
        return [("input", MessageItem(role="user", content=asked.input))]
    ids = [item.id for item in asked.input if isinstance(item, ItemReference)]
    known = recent.find(owner, ids) | await store.items(owner, ids) if ids else {}
    return [(f"input.{index}", _found(item, index, known)) for index, item in enumerate(asked.input)]


def _found(item: Item, index: int, known: Mapping[str, JsonObject]) -> Item:
    if not isinstance(item, ItemReference):
        return item
    if item.id not in known:
        raise InvalidRequestError(
            f"Item with id {item.id!r} not found.",
            param=f"input.{index}.id",
            code="item_not_found",
            suggestions=("Send the item itself; clients do so that are told to send 'store': false.", _STORE),
        )
    found: Item = _ITEM.validate_python(known[item.id])
    return found


# --- As they are stored ----------------------------------------------------------------------------------------------


def records(items: Sequence[Placed]) -> list[JsonObject]:
    """Items as the official API lists them."""
    return [record for _, item in items if (record := _record(item)) is not None]


def _record(item: Item) -> JsonObject | None:
    match item:
        case MessageItem():
            content = _content(item.content, "output_text" if item.role == "assistant" else "input_text")
            return _named(item.id, "msg") | _done("message") | {"role": item.role, "content": content}
        case FunctionCallItem():
            called = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            namespace = {"namespace": item.namespace} if item.namespace else {}
            return _named(item.id, "fc") | _done("function_call") | called | namespace
        case FunctionCallOutputItem():
            output = item.output if isinstance(item.output, str) else _content(item.output, "input_text")
            gave = {"call_id": item.call_id, "output": output}
            return _named(item.id, "fco") | _done("function_call_output") | gave
        case ReasoningItem():
            thought = item.model_dump(include={"type", "summary", "content", "encrypted_content"}, exclude_none=True)
            return _named(item.id, "rs") | {"summary": []} | thought
    return None


def _named(name: str | None, prefix: str) -> JsonObject:
    return {"id": name or new_id(prefix)}


def _done(kind: str) -> JsonObject:
    return {"type": kind, "status": "completed"}


def _content(content: str | Sequence[Part], text: str) -> list[JsonObject]:
    return [_text(content, text)] if isinstance(content, str) else [_part(part, text) for part in content]


def _part(part: Part, text: str) -> JsonObject:
    match part:
        case InputImagePart():
            return {"type": "input_image", "image_url": part.image_url, "detail": part.detail or "auto"}
        case InputFilePart():
            return part.model_dump(include={"type", "file_data", "filename"}, exclude_none=True)
        case RefusalPart():
            return {"type": "refusal", "refusal": part.refusal}
    return _text(part.text, text)


def _text(text: str, kind: str) -> JsonObject:
    more: JsonObject = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text} | more
