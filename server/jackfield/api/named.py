"""Every request has an id, and every answer tells it."""

import re

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jackfield.api.refusal import speaks_anthropic
from jackfield.exchange import new_request_id

_SANE = re.compile(r"[\x21-\x7e]{1,128}")
"""A client's own id goes into logs and headers, so it must be short and visible."""


class Named:
    """Gives each request its ``request_id``, in its state and in the headers of its answer, whoever answers it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        name = connection.state.request_id = _request_id(connection)

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = name
                if speaks_anthropic(connection):
                    headers["request-id"] = name
            await send(message)

        await self._app(scope, receive, send_with_id)


def _request_id(connection: HTTPConnection) -> str:
    own = connection.headers.get("x-request-id", "")
    return own if _SANE.fullmatch(own) else new_request_id()
