"""``GET /v1/events``: the live stream, as server-sent events and over a WebSocket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, cast, get_args

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from jackfield.errors import InvalidRequestError, JackfieldError
from jackfield_notify.feed import ClosedError, Feed, Filter, Subscription, TooSlowError
from jackfield_notify.level import Level

RETRY_MILLISECONDS = 2000
"""After which browsers connect again."""
SEND_SECONDS = 30.0
"""A client that takes nothing for so long is gone."""

GOING_AWAY = 1001
TRY_AGAIN_LATER = 1013
"""Close codes of WebSockets (RFC 6455, 7.4, and IANA's registry)."""

HEARTBEAT = '{"kind":"heartbeat"}'

_PARAMETERS = {"kind", "model", "level", "last_event_id"}


class LiveStream:
    """Both ways to read along.

    Args:
        feed: the events.
        heartbeat: seconds of silence until the stream says that it lives.
    """

    def __init__(self, feed: Feed, heartbeat: float) -> None:
        self._feed = feed
        self._heartbeat = heartbeat

    async def events(self, request: Request) -> Response:
        """As server-sent events, with ids to go on from."""
        wanted = _filter(request.query_params)
        self._feed.check_room()
        return EventSourceResponse(
            self._sse(wanted, _last_id(request)),
            ping=cast("int", self._heartbeat),
            ping_message_factory=lambda: ServerSentEvent(comment="heartbeat", sep="\n"),
            send_timeout=SEND_SECONDS,
            sep="\n",
        )

    async def _sse(self, wanted: Filter, last_id: str | None) -> AsyncIterator[ServerSentEvent]:
        with self._feed.subscribe(wanted, last_id) as subscription:
            yield ServerSentEvent(comment="connected", retry=RETRY_MILLISECONDS, sep="\n")
            # Who was too slow connects again with the last id, and goes on from there.
            with contextlib.suppress(TooSlowError, ClosedError):
                while True:
                    for entry in await subscription.next():
                        yield ServerSentEvent(entry.to_json(), id=entry.id, sep="\n")

    async def websocket(self, websocket: WebSocket) -> None:
        """Over a WebSocket: one text message an event, and a heartbeat when there is none."""
        try:
            wanted = _filter(websocket.query_params)
            self._feed.check_room()
        except JackfieldError as error:
            await websocket.send_denial_response(JSONResponse(error.envelope(), error.status, headers=error.headers))
            return
        with self._feed.subscribe(wanted, _last_id(websocket)) as subscription:
            await websocket.accept()
            await _first_of(self._tell(websocket, subscription), _hang_up(websocket))

    async def _tell(self, websocket: WebSocket, subscription: Subscription) -> None:
        try:
            while True:
                for text in await self._next(subscription):
                    await asyncio.wait_for(websocket.send_text(text), SEND_SECONDS)
        except ClosedError:
            await websocket.close(GOING_AWAY, "The server ends.")
        except (TooSlowError, TimeoutError):
            reason = "Too slow: events were missed. Connect again with last_event_id."
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(websocket.close(TRY_AGAIN_LATER, reason), SEND_SECONDS)

    async def _next(self, subscription: Subscription) -> Iterable[str]:
        try:
            entries = await asyncio.wait_for(subscription.next(), self._heartbeat)
        except TimeoutError:
            return [HEARTBEAT]
        return [entry.to_json() for entry in entries]


async def _hang_up(websocket: WebSocket) -> None:
    """Wait for the client to leave; what it says meanwhile is not for us."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(WebSocketDisconnect):
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _last_id(connection: HTTPConnection) -> str | None:
    return connection.headers.get("last-event-id") or connection.query_params.get("last_event_id")


def _filter(query: QueryParams) -> Filter:
    if unknown := sorted(set(query.keys()) - _PARAMETERS):
        raise InvalidRequestError(
            f"Unknown parameter: '{unknown[0][:64]}'.",
            param=unknown[0][:64],
            code="unknown_parameter",
            suggestions=(f"Known are: {', '.join(sorted(_PARAMETERS))}.",),
        )
    level = query.get("level", "info")
    if level not in get_args(Level):
        raise InvalidRequestError(
            f"Invalid value for 'level': {level[:64]!r}.",
            param="level",
            code="invalid_value",
            suggestions=(f"Use one of: {', '.join(get_args(Level))}.",),
        )
    return Filter(frozenset(query.getlist("kind")), frozenset(query.getlist("model")), cast("Level", level))
