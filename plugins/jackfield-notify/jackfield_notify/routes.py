"""The plugin's part of the API."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from jackfield.errors import InvalidRequestError, JackfieldError, NotFoundError, UnavailableError
from jackfield.hooks import JsonObject
from jackfield_notify import documents
from jackfield_notify.database import StorageError
from jackfield_notify.devices import Device, valid_token
from jackfield_notify.live import LiveStream
from jackfield_notify.notifier import Clock, Notifier
from jackfield_notify.outbox import State
from jackfield_notify.preferences import Preferences
from jackfield_notify.settings import ApnsTarget

MOST_LISTED = 1000

Endpoint = Callable[[Request], Awaitable[Response]]


class Registration(BaseModel):
    """What an app sends when it has got its token from Apple."""

    model_config = ConfigDict(extra="forbid")

    token: str
    target: str | None = None
    """Needed where several targets are of type ``apns``."""
    name: Annotated[str, Field(max_length=200)] = ""
    """For people: ``Anna's phone``."""


class Revival(BaseModel):
    """Which dead letters to send again."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] | None = None
    """All of them without it."""


def routes(notifier: Notifier, clock: Clock) -> list[BaseRoute]:
    """All of them."""
    api = NotificationApi(notifier, clock)
    live = LiveStream(notifier.feed, notifier.settings.heartbeat_seconds)
    rest: list[tuple[str, str, Endpoint]] = [
        ("GET", "/events", live.events),
        ("GET", "/notifications/settings", api.get_settings),
        ("PUT", "/notifications/settings", api.put_settings),
        ("DELETE", "/notifications/settings", api.delete_settings),
        ("GET", "/notifications/targets", api.list_targets),
        ("GET", "/notifications/devices", api.list_devices),
        ("POST", "/notifications/devices", api.register_device),
        ("DELETE", "/notifications/devices/{device}", api.remove_device),
        ("GET", "/notifications/outbox", api.list_outbox),
        ("POST", "/notifications/outbox/retry", api.retry_dead),
    ]
    found: list[BaseRoute] = []
    for path in dict.fromkeys(path for _, path, _ in rest):
        endpoints = {method: endpoint for method, known, endpoint in rest if known == path}
        found.append(Route(f"/v1{path}", _by_method(endpoints), methods=list(endpoints)))
    return [*found, WebSocketRoute("/v1/events", live.websocket)]


def _by_method(endpoints: dict[str, Endpoint]) -> Endpoint:
    # One route a path, so that other methods get a 405 which names all of these.
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            return await endpoints[method](request)
        except StorageError as error:
            raise UnavailableError(
                f"The outbox cannot be used at the moment: {error}.", suggestions=("Try again in a few seconds.",)
            ) from error

    return wraps(next(iter(endpoints.values())))(endpoint)


class NotificationApi:
    """The endpoints under ``/v1/notifications``."""

    def __init__(self, notifier: Notifier, clock: Clock) -> None:
        self._notifier = notifier
        self._clock = clock

    # --- Preferences ---------------------------------------------------------------------------------------------

    async def get_settings(self, request: Request) -> Response:
        """The preferences in force."""
        return _model(self._notifier.preferences)

    async def put_settings(self, request: Request) -> Response:
        """Others instead."""
        preferences = await documents.read(request, Preferences)
        await run_in_threadpool(self._notifier.prefer, preferences)
        return _model(self._notifier.preferences)

    async def delete_settings(self, request: Request) -> Response:
        """Those of the server's TOML file again."""
        await run_in_threadpool(self._notifier.forget_preferences)
        return _model(self._notifier.preferences)

    async def list_targets(self, request: Request) -> Response:
        """Who can be told, without addresses and secrets."""
        targets = self._notifier.settings.targets
        return _list([{"name": name, "type": target.type} for name, target in targets.items()])

    # --- Devices -------------------------------------------------------------------------------------------------

    async def list_devices(self, request: Request) -> Response:
        """Those that have registered."""
        devices = await run_in_threadpool(self._notifier.devices.all)
        return _list([device.report() for device in devices])

    async def register_device(self, request: Request) -> Response:
        """One more, or the same again."""
        asked = await documents.read(request, Registration)
        device = Device(self._app(asked.target), valid_token(asked.token), asked.name, self._clock())
        await run_in_threadpool(self._notifier.devices.register, device)
        return JSONResponse(device.report(), 201)

    async def remove_device(self, request: Request) -> Response:
        """Forget one, by its id or its token."""
        asked = request.path_params["device"]
        return await run_in_threadpool(self._remove, asked)

    def _remove(self, asked: str) -> Response:
        found = [one for one in self._notifier.devices.all() if asked == one.id or asked.lower() == one.token]
        if not found:
            raise NotFoundError("There is no such device.", suggestions=("See GET /v1/notifications/devices.",))
        for device in found:
            self._notifier.devices.remove(device.target, device.token)
            self._notifier.outbox.bury_address(device.target, device.token, self._clock(), "The device was removed.")
        return Response(status_code=204)

    def _app(self, asked: str | None) -> str:
        apps = [name for name, target in self._notifier.settings.targets.items() if isinstance(target, ApnsTarget)]
        if asked in apps:
            return asked
        if asked is None and len(apps) == 1:
            return apps[0]
        known = f"Targets of type apns are: {', '.join(apps)}." if apps else "Add one to [plugins.notify.targets]."
        message = "There is no such target for devices." if asked or not apps else "Say which target to register with."
        raise InvalidRequestError(message, param="target", code="unknown_target", suggestions=(known,))

    # --- The outbox ----------------------------------------------------------------------------------------------

    async def list_outbox(self, request: Request) -> Response:
        """Messages, the newest first, and how many there are in each state."""
        states = _states(request)
        limit = _limit(request)
        messages = await run_in_threadpool(lambda: self._notifier.outbox.messages(*states, limit=limit))
        counts = await run_in_threadpool(self._notifier.counts)
        return _list([message.report() for message in messages], counts=counts)

    async def retry_dead(self, request: Request) -> Response:
        """Send dead letters again."""
        asked = await documents.read(request, Revival)
        seconds = self._notifier.settings.give_up_seconds
        revived = await run_in_threadpool(self._notifier.outbox.revive, asked.ids, self._clock(), seconds)
        if missing := sorted(set(asked.ids or ()) - set(revived)):
            raise NotFoundError(
                f"There is no dead letter {missing[0][:64]!r}.",
                param="ids",
                suggestions=("See GET /v1/notifications/outbox?state=dead.",),
            )
        self._notifier.wake()
        return JSONResponse({"retried": revived})


def _states(request: Request) -> list[State]:
    asked = request.query_params.getlist("state")
    known: dict[str, State] = {"queued": "queued", "in_flight": "in_flight", "delivered": "delivered", "dead": "dead"}
    if unknown := [state for state in asked if state not in known]:
        raise _wrong("state", unknown[0], f"Use one of: {', '.join(known)}.")
    return [known[state] for state in asked] or list(known.values())


def _limit(request: Request) -> int:
    asked = request.query_params.get("limit", "100")
    if not (asked.isascii() and asked.isdecimal() and len(asked) <= 4 and 1 <= int(asked) <= MOST_LISTED):
        raise _wrong("limit", asked, f"Use a number from 1 to {MOST_LISTED}.")
    return int(asked)


def _wrong(param: str, value: str, hint: str) -> JackfieldError:
    message = f"Invalid value for '{param}': {value[:64]!r}."
    return InvalidRequestError(message, param=param, code="invalid_value", suggestions=(hint,))


def _list(data: list[JsonObject], **more: object) -> Response:
    return JSONResponse({"object": "list", "data": data, **more})


def _model(preferences: Preferences) -> Response:
    return Response(preferences.model_dump_json(), media_type="application/json")
