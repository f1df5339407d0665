"""A server that acts as Apple's: HTTP/2 only, over TLS, with Apple's answers."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import hypercorn.asyncio
import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEY_ID = "ABCDE12345"
TEAM_ID = "TEAM567890"
TOPIC = "org.example.jackfield"
PATIENCE = 60.0


@dataclass(frozen=True)
class Push:
    """A request for a push."""

    device: str
    headers: dict[str, str]
    payload: dict[str, Any]
    http_version: str


def answer(status: int, reason: str, *, timestamp: int | None = None, **headers: str) -> Response:
    """A refusal as Apple words it."""
    body: dict[str, Any] = {"reason": reason} | ({"timestamp": timestamp} if timestamp else {})
    return JSONResponse(body, status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Apple:
    """What it knows and what it was sent."""

    folder: Path
    answers: list[Response] = field(default_factory=list)
    """To give first, one by one; then it looks at the request itself."""
    gone: set[str] = field(default_factory=set)
    """Devices without the app."""
    bad: set[str] = field(default_factory=set)
    """Tokens that are none."""
    busy: set[str] = field(default_factory=set)
    """Devices that have been sent too much."""
    pushes: list[Push] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        """Make a key, as the developer's account does, and certificates."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.key_file = self.folder / "AuthKey_ABCDE12345.p8"
        self.key_file.write_bytes(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._authority = trustme.CA()
        self.ca_file = self.folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca_file))

    def target(self) -> dict[str, Any]:
        """Settings of a target that pushes through this server."""
        return {
            "type": "apns",
            "key_file": str(self.key_file),
            "key_id": KEY_ID,
            "team_id": TEAM_ID,
            "topic": TOPIC,
            "server": self.url,
            "ca_file": str(self.ca_file),
        }

    def claims(self, push: Push) -> dict[str, Any]:
        """What the sender's token says, once its signature has been checked."""
        token = push.headers["authorization"].removeprefix("bearer ")
        assert jwt.get_unverified_header(token)["kid"] == KEY_ID
        return jwt.decode(token, self._key.public_key(), algorithms=["ES256"], options={"verify_iat": False})

    async def _push(self, request: Request) -> Response:
        device = request.path_params["device"]
        push = Push(device, dict(request.headers), await request.json(), request.scope["http_version"])
        self.pushes.append(push)
        if self.answers:
            return self.answers.pop(0)
        return self._judge(push)

    def _judge(self, push: Push) -> Response:
        try:
            issuer = self.claims(push)["iss"]
        except jwt.InvalidTokenError:
            issuer = None
        if issuer != TEAM_ID:
            return answer(403, "InvalidProviderToken")
        if push.headers.get("apns-topic") != TOPIC:
            return answer(400, "BadTopic")
        if push.device in self.bad:
            return answer(400, "BadDeviceToken")
        if push.device in self.gone:
            return answer(410, "Unregistered", timestamp=1_900_000_000_000)
        if push.device in self.busy:
            return answer(429, "TooManyRequests")
        return Response(status_code=200, headers={"apns-id": push.headers["apns-id"]})

    @contextmanager
    def serving(self) -> Iterator["Apple"]:
        """Take pushes."""
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = self._config(listener.detach())  # hypercorn closes it
        app = Starlette(routes=[Route("/3/device/{device}", self._push, methods=["POST"])])
        ready, loop, end = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

        async def serve() -> None:
            ready.set()
            await hypercorn.asyncio.serve(cast("Any", app), config, shutdown_trigger=end.wait)

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        try:
            assert ready.wait(PATIENCE)
            self.url = f"https://localhost:{port}"
            yield self
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join(PATIENCE)
            loop.close()

    def _config(self, descriptor: int) -> Config:
        certificate = self._authority.issue_cert("localhost", "127.0.0.1")
        chain = self.folder / "server.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(str(chain))
        config = Config()
        config.errorlog = None
        config.bind = [f"fd://{descriptor}"]
        config.certfile = config.keyfile = str(chain)
        config.alpn_protocols = ["h2"]
        config.graceful_timeout = 1
        return config
