"""Reading a request, and noticing when nobody waits for the answer any more."""

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from jackfield.errors import ContentEncodingError, PayloadTooLargeError
from jackfield.exchange import Exchange
from jackfield.protocol.asking import Asking
from jackfield.protocol.base import JsonObject, RequestBody
from jackfield.protocol.embeddings import EmbeddingsRequest
from jackfield.protocol.parsing import load, validate

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=Asking | EmbeddingsRequest)
Body = TypeVar("Body", bound=RequestBody)
Result = TypeVar("Result")

_logged: set[str] = set()


async def read(body: bytes, model: type[Model], exchange: Exchange) -> Model:
    """A request's body, validated, as plugins have it.

    Raises:
        InvalidRequestError: it is not what the endpoint takes.
    """
    document, asked = await parsed(body, model)
    exchange.asks(asked)
    if exchange.hooks.has("transform_request"):
        check = partial(validate, model)
        asked = check(await exchange.hooks.transform_request(document, exchange.info, check))
        exchange.asks(asked)
    log_ignored(asked)
    return asked


async def parsed(body: bytes, model: type[Body]) -> tuple[JsonObject, Body]:
    """A request's body, and what it says.

    Raises:
        InvalidRequestError: it is not what the endpoint takes.
    """
    # A long conversation takes milliseconds to validate; small ones are not worth a thread.
    return _parse(model, body) if len(body) < 65_536 else await asyncio.to_thread(_parse, model, body)


async def whole(request: Request) -> bytes:
    """The request's body.

    Raises:
        ContentEncodingError: it is compressed.
        PayloadTooLargeError: it is larger than the server reads.
    """
    for encoding in request.headers.getlist("content-encoding"):
        if encoding.strip().lower() not in ("", "identity"):
            raise ContentEncodingError(encoding)
    body = bytearray()
    limit: int = request.app.state.settings.max_body_bytes
    # What is announced need not be waited for.
    _check_size(int(request.headers.get("content-length") or 0), limit)
    async for piece in request.stream():
        body += piece
        _check_size(len(body), limit)
    return bytes(body)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise PayloadTooLargeError(
            f"The request's body is larger than {limit} bytes.",
            suggestions=("Send less.", "Raise the setting max_body_bytes."),
        )


def _parse(model: type[Body], body: bytes) -> tuple[JsonObject, Body]:
    document = load(body)
    return document, validate(model, document)


def log_ignored(request: RequestBody) -> None:
    """Tell once of each field that clients send in vain."""
    for name, reason in request.ignored().items():
        if name not in _logged:
            _logged.add(name)
            logger.info("Clients send %r, which changes nothing: %s", name, reason)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled as soon as the client hangs up.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
