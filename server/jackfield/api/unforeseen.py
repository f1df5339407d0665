"""What nobody has foreseen: a bug becomes an answer like any other, and one entry in the log, with the request's id."""

import logging

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jackfield.api.refusal import refusal
from jackfield.errors import unexpected

logger = logging.getLogger(__name__)


class Unforeseen:
    """Answers for what fails.

    Starlette's own `ServerErrorMiddleware` stands before all others, whose headers its answer would lack, and raises
    the error again, which uvicorn then logs a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_and_see(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except Exception:
            request = Request(scope)
            logger.exception(
                "Unexpected error at %s %s, request %s", request.method, request.url.path, request.state.request_id
            )
            # An answer that breaks off: uvicorn closes the connection, so that nobody takes it for a whole one.
            if not begun:
                await refusal(unexpected(), request)(scope, receive, send)
