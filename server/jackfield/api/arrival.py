"""Who sends a request, and whether they may: what is asked before anything else."""

from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jackfield.api.refusal import refusal
from jackfield.errors import ForbiddenError, JackfieldError, UnauthorizedError
from jackfield.exchange import Exchange
from jackfield.hooks.calls import Hooks
from jackfield.hooks.data import Identity
from jackfield.security.keyring import Keyring

OPEN = frozenset({"/health", "/ready"})
"""Whoever watches over the server needs no key."""

SCOPES = {
    "/chat/completions": "inference",
    "/completions": "inference",
    "/infill": "inference",
    "/fim/completions": "inference",
    "/messages": "inference",
    "/messages/count_tokens": "inference",
    "/embeddings": "inference",
    "/models": "inference",
    "/models/load": "admin",
    "/models/unload": "admin",
    "/responses": "inference",
    "/tokenize": "inference",
    "/detokenize": "inference",
    "/apply-template": "inference",
    "/tokenizer_info": "inference",
    "/metrics": "metrics",
}
"""What a key must be for; everything else needs ``admin``, which stands for all of them."""
FAMILIES = ("/models", "/responses")
"""Paths whose scope is also that of the paths below them."""


class Arrival:
    """Finds out who sends each request: ``identity``, ``has_key`` and ``allowance`` of its state.

    Args:
        app: what is behind it.
        hooks: the plugins; whom the keys do not know, they may.
        keys: that are known.
        open_paths: what plugins let everybody get.
    """

    def __init__(self, app: ASGIApp, hooks: Hooks, keys: Keyring, open_paths: Collection[str] = ()) -> None:
        self._app = app
        self._hooks = hooks
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        connection.state.identity = connection.state.allowance = None
        connection.state.has_key = False

        async def send_with_allowance(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept") and connection.state.allowance:
                MutableHeaders(scope=message).update(connection.state.allowance.headers)
            await send(message)

        if not self._is_open(scope, connection):
            try:
                await self._let_in(connection)
            except JackfieldError as error:
                Exchange.of(connection).failed(error)
                await refuse(error, scope, receive, send_with_allowance)
                return
        await self._app(scope, receive, send_with_allowance)

    def _is_open(self, scope: Scope, connection: HTTPConnection) -> bool:
        """Whether nobody asks who sends this: a browser's preflight, for one, never carries a key."""
        path, method = scope["path"], scope.get("method")
        preflight = method == "OPTIONS" and "access-control-request-method" in connection.headers
        return preflight or path in OPEN or (method in ("GET", "HEAD") and path in self._open_paths)

    async def _let_in(self, connection: HTTPConnection) -> None:
        identity = connection.state.identity = await self._identify(connection)
        # Never by the URL, which a Host header may have a hand in.
        path: str = connection.scope["path"]
        scope = _scope(path)
        if identity is not None and not identity.scopes & {scope, "admin"}:
            raise ForbiddenError(path, scope)
        if connection.state.allowance:
            connection.state.allowance.take_request()

    async def _identify(self, connection: HTTPConnection) -> Identity | None:
        """Who sends this; None where nobody asks."""
        self._keys.look()
        if key := self._keys.find(connection):
            connection.state.has_key = True
            connection.state.allowance = self._keys.allowance(key)
            return key.identity
        identity = await self._hooks.authenticate(_with_bearer(connection))
        if identity is None and self._keys.asks:
            raise UnauthorizedError
        return identity


def _with_bearer(connection: HTTPConnection) -> HTTPConnection:
    """The request with its key where plugins look for it: Anthropic's clients send it in a header of its own."""
    key = connection.headers.get("x-api-key")
    if key is None or "authorization" in connection.headers:
        return connection
    bearer = (b"authorization", b"Bearer " + key.encode("latin-1"))
    return HTTPConnection({**connection.scope, "headers": [*connection.scope["headers"], bearer]})


def _scope(path: str) -> str:
    """The scope that a path needs."""
    path = path.removeprefix("/v1")
    family = next((family for family in FAMILIES if path.startswith(f"{family}/")), "")
    return SCOPES.get(path) or SCOPES.get(family) or "admin"


async def refuse(error: JackfieldError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error before anybody else has seen it."""
    if scope["type"] == "websocket":
        # Before it is accepted, closing a WebSocket is answered with 403.
        await send({"type": "websocket.close", "code": 1008, "reason": error.message})
        return
    await refusal(error, HTTPConnection(scope))(scope, receive, send)
