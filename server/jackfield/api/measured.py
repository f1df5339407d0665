"""Counts every request that is answered, whoever answers it: this stands before everything else."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jackfield.metrics.http import HttpMetrics


class Measured:
    """Tells what each HTTP request was answered with.

    Args:
        app: what is behind it.
        metrics: who counts.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(scope, message["status"])
            await send(message)

        await self._app(scope, receive, send_and_count)
