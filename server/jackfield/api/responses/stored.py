"""``/v1/responses/{id}``: responses that are stored."""

from collections.abc import Sequence

from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from jackfield.errors import InvalidRequestError, NotFoundError
from jackfield.hooks.data import Identity
from jackfield.protocol.base import JsonObject
from jackfield.protocol.responses.answer import DeletedResponse, ItemList
from jackfield.response_store import MissingResponseError, ResponseStore

PAGE = 20
"""Items on a page if the client does not say."""
LARGEST_PAGE = 100


class _ResponseId(Convertor[str]):
    """Ids of responses, so that nothing else that may stand in their place is taken for one."""

    regex = "resp_[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("response", _ResponseId())


def owner_of(identity: Identity | None) -> str:
    """Whose responses somebody may see: the sender's own."""
    return identity.name if identity else ""


async def stored_response(request: Request) -> Response:
    """Get it, or delete it."""
    _check_query(request.query_params, {"include", "include[]", "stream", "include_obfuscation"})
    store, owner, name = _asked(request)
    if request.method == "DELETE":
        if not await store.delete(owner, name):
            raise _missing(name)
        return _json(DeletedResponse(id=name).to_json())
    if request.query_params.get("stream", "false") != "false":
        raise InvalidRequestError(
            "A stored response does not stream.",
            param="stream",
            code="unsupported_value",
            suggestions=("Leave out 'stream'.",),
        )
    body = await store.get(owner, name)
    if body is None:
        raise _missing(name)
    return _json(body)


async def cancel_response(request: Request) -> Response:
    """Say that it cannot be cancelled."""
    store, owner, name = _asked(request)
    if await store.get(owner, name) is None:
        raise _missing(name)
    raise InvalidRequestError(
        "Only responses that run in the background can be cancelled, and none do here.",
        code="unsupported_value",
        suggestions=("Close the connection: that stops the work at once.",),
    )


async def input_items(request: Request) -> Response:
    """The items that a stored response was made from, page by page."""
    store, owner, name = _asked(request)
    query = request.query_params
    _check_query(query, {"include", "include[]", "limit", "order", "after"})
    limit = _limit(query.get("limit", str(PAGE)))
    try:
        items = await store.given(owner, name)
    except MissingResponseError as error:
        raise _missing(error.response) from None
    if _order(query.get("order", "desc")) == "desc":
        items.reverse()
    rest = _after(items, query["after"]) if "after" in query else items
    return _json(_page(rest, limit).to_json())


def _asked(request: Request) -> tuple[ResponseStore, str, str]:
    """Where to look, for whom, and for what."""
    return request.app.state.host.responses, owner_of(request.state.identity), request.path_params["response_id"]


def _json(body: bytes | str) -> Response:
    return Response(body, media_type="application/json")


def _missing(name: str) -> NotFoundError:
    return NotFoundError(
        f"Response with id {name!r} not found.",
        suggestions=("Responses are stored when their requests have 'store': true; see also store_responses.",),
    )


# --- Queries ---------------------------------------------------------------------------------------------------------


def _check_query(query: QueryParams, known: set[str]) -> None:
    for name in query:
        if name not in known:
            raise InvalidRequestError(
                f"Unknown parameter: {name!r}.",
                param=name,
                code="unknown_parameter",
                suggestions=(f"Use some of: {', '.join(sorted(known))}.",),
            )


def _limit(value: str) -> int:
    if value.isascii() and value.isdecimal() and 1 <= int(value[:9]) <= LARGEST_PAGE:
        return int(value)
    raise _wrong("limit", value, f"Send a number from 1 to {LARGEST_PAGE}.")


def _order(value: str) -> str:
    if value in ("asc", "desc"):
        return value
    raise _wrong("order", value, "Send 'asc' or 'desc'.")


def _after(items: Sequence[JsonObject], value: str) -> Sequence[JsonObject]:
    for index, item in enumerate(items):
        if item["id"] == value:
            return items[index + 1 :]
    raise _wrong("after", value, "Send the id of one of the response's items.")


def _wrong(name: str, value: str, suggestion: str) -> InvalidRequestError:
    message = f"Invalid value for {name!r}: {value[:40]!r}."
    return InvalidRequestError(message, param=name, code="invalid_value", suggestions=(suggestion,))


def _page(items: Sequence[JsonObject], limit: int) -> ItemList:
    data = list(items[:limit])
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return ItemList(data=data, first_id=first, last_id=last, has_more=len(items) > limit)
