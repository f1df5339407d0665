"""What becomes of requests while the server ends."""

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jackfield.api.refusal import refusal
from jackfield.drain import Drain
from jackfield.errors import ShuttingDownError
from jackfield.exchange import Exchange

LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Whoever watches over the server may do so until its end."""


class Draining:
    """Refuses work while the server ends, with what tells clients to come back; until then it counts what there is."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        closing = self._closing(send)
        if scope["method"] in LOOKING:
            await self._app(scope, receive, closing)
        elif self._drain.draining:
            error, connection = ShuttingDownError(), HTTPConnection(scope)
            Exchange.of(connection).failed(error)
            await refusal(error, connection)(scope, receive, closing)
        else:
            with self._drain.work():
                await self._app(scope, receive, closing)

    def _closing(self, send: Send) -> Send:
        """Send, and say that the connection ends with the answer: the next request has to go elsewhere."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.draining:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        return send_and_close
