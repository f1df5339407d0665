"""What browsers are kept from: pages of others that reach this server by a name of theirs, or send it something.

Whoever has one of the server's own keys is let through: a page of somebody else has none. Whom a plugin lets in is not,
since it may go by what a browser sends without being asked to: a cookie, a password it remembers, its address.
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jackfield.api.arrival import OPEN, refuse
from jackfield.errors import ForeignOriginError, JackfieldError, UnknownHostError
from jackfield.exchange import Exchange

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer, unless whoever answers has said something else."""

FROM_CONTAINERS = ("host.docker.internal", "host.containers.internal", "host.lima.internal")
"""What containers call the machine they run on. Their top-level domain is nobody's to give away."""


class Guard:
    """Refuses requests that a browser was tricked into: DNS rebinding, and forms of other sites.

    Args:
        app: what is behind it.
        hosts: names that the server may be reached by, besides addresses, ``localhost`` and this machine's own names;
            ``.example.com`` stands for all names below, ``*`` for any.
        origins: sites whose pages may send requests.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self._app = app
        own = socket.gethostname().lower()
        local = {"localhost", ".localhost", own, f"{own.partition('.')[0]}.local"}
        self._hosts = {*local, *FROM_CONTAINERS, *map(str.lower, hosts)}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            connection = HTTPConnection(scope)
            try:
                self._check(connection)
            except JackfieldError as error:
                Exchange.of(connection).failed(error)
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, connection: HTTPConnection) -> None:
        if connection.state.has_key:
            return
        host = connection.headers.get("host", "")
        if host and not self._is_known(_name(host)):
            raise UnknownHostError(_name(host))
        origin = connection.headers.get("origin")
        if origin is None and _is_from_elsewhere(connection) and "*" not in self._origins:
            raise ForeignOriginError
        if origin is not None and self._is_foreign(origin, host):
            raise ForeignOriginError(origin)

    def _is_known(self, name: str) -> bool:
        """Whether nobody else can have given this name to the server: an address is no name."""
        above = (f".{name.split('.', count)[-1]}" for count in range(1, name.count(".") + 1))
        return (
            "*" in self._hosts or _is_address(name) or name in self._hosts or any(one in self._hosts for one in above)
        )

    def _is_foreign(self, origin: str, host: str) -> bool:
        """Whether a page of another site sends this; programs with windows have schemes of their own."""
        if origin in self._origins or "*" in self._origins:
            return False
        scheme, _, site = origin.partition("://")
        return origin == "null" or (scheme in ("http", "https") and site.lower() != host.lower())


class SafeHeaders:
    """Tells browsers to be careful with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if headers.get("content-type", "").startswith("application/json"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_safely if scope["type"] == "http" else send)


def _is_from_elsewhere(connection: HTTPConnection) -> bool:
    """Whether a browser says that a page of another origin wants this as an image, a script, a frame or the like.

    Somebody who follows a link to here may do that. (Fetch Metadata, www.w3.org/TR/fetch-metadata)
    """
    headers = connection.headers
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
    return not (link and connection.scope.get("method") == "GET")


def _name(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
