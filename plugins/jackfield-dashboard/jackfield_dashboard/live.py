"""``/dashboard/state`` and ``/dashboard/events``: what the page shows, once or as it changes."""

import json
from collections.abc import AsyncIterator
from typing import cast

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jackfield.errors import UnavailableError
from jackfield.hooks import JsonObject
from jackfield_dashboard.overview import Overview

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

PING_SECONDS = 15.0
SEND_SECONDS = 30.0
"""A page that takes nothing for so long is gone."""


class Live:
    """Tells open pages once a second what is new.

    Args:
        overview: what there is to tell.
        most: pages at the same time.
    """

    def __init__(self, overview: Overview, most: int) -> None:
        self._overview = overview
        self._most = most
        self.watchers = 0

    async def state(self, request: Request) -> Response:
        """Everything, once."""
        return JSONResponse(self._overview.whole(), headers=HEADERS)

    async def events(self, request: Request) -> Response:
        """Everything, and then what changes: server-sent events named ``whole`` and ``news``.

        Raises:
            UnavailableError: as many pages are open as may be.
        """
        if self.watchers >= self._most:
            raise UnavailableError(
                f"{self._most} pages are open already.",
                retry_after=10,
                suggestions=("Close one of them.", "Raise most_watchers in [plugins.dashboard]."),
            )
        return EventSourceResponse(
            self._stream(),
            headers=HEADERS,
            ping=cast("int", PING_SECONDS),
            send_timeout=SEND_SECONDS,
            sep="\n",
        )

    async def _stream(self) -> AsyncIterator[ServerSentEvent]:
        self.watchers += 1
        try:
            told = self._overview.whole()
            yield _event("whole", told)
            while True:
                await self._overview.history.next()
                told = self._overview.news(told["version"])
                yield _event("news", told)
        finally:
            self.watchers -= 1


def _event(name: str, told: JsonObject) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(told, separators=(",", ":")), event=name, sep="\n")
