"""Plugins' middleware around the application, which goes on without it when it fails."""

import asyncio
import time
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jackfield.hooks.calls import Hooks
from jackfield.hooks.dispatcher import ESCAPES, PluginError
from jackfield.hooks.plugin import Plugin

HOOK = "register_middleware"


class Isolated:
    """One plugin's middleware: a request that it fails at or holds up goes past it, as long as that is possible.

    It is possible until the middleware has read of the request or sent of the answer.
    """

    def __init__(self, app: ASGIApp, *, plugin: Plugin, middleware: Middleware, hooks: Hooks, seconds: float) -> None:
        self._app = app
        self._plugin = plugin
        self._hooks = hooks
        self._seconds = seconds
        self._inner: ASGIApp | None = None
        try:
            self._inner = middleware.cls(self._enter, *middleware.args, **middleware.kwargs)
        except ESCAPES as error:
            hooks.failed(plugin, HOOK, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._inner is None or not self._plugin.active or scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        passage = _Passage(receive, send)
        started = time.perf_counter()
        task = asyncio.create_task(self._pass(self._inner, dict(scope, _passage=passage), passage))
        try:
            error = await self._entered(task, passage)
            if error is not None and not passage.begun:
                self._hooks.failed(self._plugin, HOOK, error, time.perf_counter() - started)
                await self._app(scope, receive, send)
                return
            await task
            self._plugin.count(HOOK, 0.0)
        except Exception as error:
            if passage.from_inside(error):
                raise
            self._hooks.failed(self._plugin, HOOK, error)
            # Without its own words, which may quote the request.
            raise PluginError(f"middleware raised {type(error).__name__}") from None
        finally:
            task.cancel()

    async def _entered(self, task: "asyncio.Task[None]", passage: "_Passage") -> Exception | None:
        """Why the middleware did not let the request through, when it also did not answer it."""
        let_through = asyncio.create_task(passage.entered.wait())
        try:
            await asyncio.wait({task, let_through}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            let_through.cancel()
        if passage.begun:
            return None
        if not task.done():
            task.cancel()
            return TimeoutError()
        if task.cancelled():
            return PluginError("it was cancelled by itself")
        error = task.exception()
        return error if isinstance(error, Exception) else PluginError("it neither answered nor let the request through")

    async def _pass(self, inner: ASGIApp, scope: dict[str, Any], passage: "_Passage") -> None:
        try:
            await inner(scope, passage.receive, passage.send)
        except (SystemExit, KeyboardInterrupt) as error:
            raise PluginError(f"it raised {type(error).__name__}") from error

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        passage: _Passage = scope["_passage"]
        passage.enter()
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            passage.raised = error
            raise


class _Passage:
    """One request on its way through a middleware."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.entered = asyncio.Event()
        self.begun = False
        """Whether something of it has been read or answered, or the application has it."""
        self.raised: Exception | None = None

    def enter(self) -> None:
        """The middleware lets it through."""
        self.begun = True
        self.entered.set()

    def from_inside(self, error: Exception) -> bool:
        """Whether the application raised this, and not the middleware."""
        return error is self.raised

    async def receive(self) -> Message:
        """For the middleware."""
        self.enter()
        return await self._receive()

    async def send(self, message: Message) -> None:
        """For the middleware."""
        self.enter()
        await self._send(message)
