"""Another server that speaks OpenAI's API, and what it is asked over HTTP."""

import asyncio
import codecs
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2

from jackfield.backends.breaker import Attempt, Breaker
from jackfield.backends.refusals import refused, told_status
from jackfield.errors import (
    InvalidRequestError,
    JackfieldError,
    LoopError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamTimeoutError,
)
from jackfield.protocol.base import JsonObject
from jackfield.settings.upstreams import UpstreamSettings

TRAIL = "Jackfield-Trail"
"""The header that names the servers that have passed a request on."""

LONGEST_TRAIL = 8
"""More servers than that are taken for a circle."""

MAX_EVENT_BYTES = 16 << 20
"""A line of a stream that is longer makes no sense."""

SHORTEST_SECRET = 8
"""A key that is shorter stands in for one, and may be a word of any message."""

LINGER_SECONDS = 0.2
MAX_ERROR_BYTES = 64 << 10
MAX_ANSWER_BYTES = 256 << 20

BESIDE_V1 = ("/tokenize", "/detokenize", "/apply-template", "/tokenizer_info", "/infill")
"""Where vLLM, llama.cpp and Jackfield have what OpenAI's API does not."""


def onward(trail: str, own: str) -> str:
    """The trail for the next server, with this one's own name at its end.

    Raises:
        InvalidRequestError: it cannot go along.
        LoopError: the request has been here before, or at too many servers.
    """
    servers = [one.strip() for one in sendable(TRAIL, trail).split(",") if one.strip()]
    if own in servers or len(servers) >= LONGEST_TRAIL:
        raise LoopError
    return ", ".join([*servers, own])


def sendable(name: str, value: str) -> str:
    """A client's header that goes along.

    Raises:
        InvalidRequestError: it cannot.
    """
    if value.isascii() and value.isprintable():
        return value
    raise InvalidRequestError(
        f"The header {name} has characters that are not visible ASCII.",
        code="invalid_value",
        suggestions=(f"Send {name} without them.",),
    )


class Upstream:
    """One such server. All of it is the event loop's.

    Args:
        name: as the settings have it.
        settings: where it is, and how long it may take.
        breaker: says when it is left alone.
    """

    def __init__(self, name: str, settings: UpstreamSettings, breaker: Breaker | None = None) -> None:
        self.name = name
        self.settings = settings
        self.breaker = breaker or Breaker(
            failures=settings.max_failures, window=settings.window_seconds, rest=settings.rest_seconds
        )
        self.waiting = 0
        """Requests that have been sent there, and have heard nothing yet."""
        self.outcomes: Counter[str] = Counter()
        """How requests ended: ``answered``, ``cancelled``, or an error's code."""
        self._client: httpx2.AsyncClient | None = None

    def begin(self) -> Attempt:
        """A request is about to be sent there.

        Raises:
            UpstreamBusyError: it is left alone, since it has failed.
        """
        attempt = self.breaker.begin()
        if attempt is None:
            raise UpstreamBusyError(
                f"Upstream {self.name} has failed several times, and is left alone for now.",
                retry_after=max(1, round(self.breaker.seconds)),
                suggestions=("Try again after the seconds in Retry-After.", "Look whether that server is well."),
            )
        return attempt

    async def chunks(self, path: str, body: JsonObject, headers: Mapping[str, str]) -> AsyncGenerator[JsonObject, None]:
        """What it streams, event by event.

        Raises:
            JackfieldError: it refuses, cannot be reached or breaks off.
        """
        async with self._asked(path, body, headers) as response:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise self.nonsense(f"it answered with {kind[:60] or 'nothing'!r} instead of a stream")
            events = _events(response.aiter_bytes(), self.nonsense)
            begun = False
            async for data in events:
                if data == b"[DONE]":
                    await _read_to_the_end(events)
                    return
                # llama.cpp says so between the texts of several prompts.
                if data != b"null":
                    yield self._object(path, body, data, begun=begun)
                    begun = True

    async def whole(self, path: str, body: JsonObject | None, headers: Mapping[str, str]) -> JsonObject:
        """What it answers in one piece, to a ``GET`` where nothing is sent.

        Raises:
            JackfieldError: it refuses, cannot be reached or breaks off.
        """
        async with self._asked(path, body, headers) as response:
            data = await _beginning(response, MAX_ANSWER_BYTES)
        if len(data) > MAX_ANSWER_BYTES:
            raise self.nonsense("its answer is too long")
        # Vectors of many texts take their time.
        read = partial(self._object, path, body, data)
        return read() if len(data) < 65_536 else await asyncio.to_thread(read)

    async def close(self) -> None:
        """Nobody asks it any more."""
        if self._client is not None:
            await self._client.aclose()

    def nonsense(self, what: str) -> UpstreamError:
        """It does not do what such servers do."""
        return UpstreamError(
            f"Upstream {self.name} failed: {what}.",
            suggestions=("Send the request again.", f"Look at the log of the server at {self.name}."),
        )

    def late(self, seconds: float) -> UpstreamTimeoutError:
        """It says nothing."""
        return UpstreamTimeoutError(
            f"Upstream {self.name} said nothing for {seconds:g} seconds.",
            suggestions=("Try again when it has less to do.", f"Set upstreams.{self.name}.first_seconds higher."),
        )

    # --- HTTP ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _asked(
        self, path: str, body: JsonObject | None, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response]:
        method, content = ("GET", b"") if body is None else ("POST", json.dumps(body).encode())
        try:
            async with self._http().stream(method, self._at(path), content=content, headers=headers) as response:
                if response.status_code != 200:
                    # Some repeat the request, however long it is.
                    text = await _beginning(response, MAX_ERROR_BYTES)
                    raise self._refused(path, body, text, response.status_code, response.headers)
                yield response
        except httpx2.ConnectTimeout:
            raise self.late(self.settings.connect_seconds) from None
        except (httpx2.ConnectError, httpx2.InvalidURL):
            raise self._unreachable() from None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise self.nonsense(f"the connection broke ({type(error).__name__})") from None

    def _unreachable(self) -> UpstreamError:
        return UpstreamError(
            f"Upstream {self.name} failed: it cannot be reached.",
            suggestions=(
                f"See that a server runs at upstreams.{self.name}.url, and can be reached from here.",
                "Send the request again when it does.",
            ),
        )

    def _at(self, path: str) -> str:
        base = self.settings.url
        return (base.removesuffix("/v1") if path.partition("?")[0] in BESIDE_V1 else base) + path

    def _http(self) -> httpx2.AsyncClient:
        if self._client is None:
            headers = {"Accept": "text/event-stream, application/json", "Content-Type": "application/json"}
            if self.settings.key is not None:
                headers["Authorization"] = f"Bearer {self.settings.key}"
            self._client = httpx2.AsyncClient(
                headers=headers,
                # How long an answer may take is looked at elsewhere.
                timeout=httpx2.Timeout(None, connect=self.settings.connect_seconds),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30.0),
                # What is sent goes to the configured server, and nowhere else.
                trust_env=False,
                follow_redirects=False,
            )
        return self._client

    def _object(self, path: str, body: JsonObject | None, data: bytes, *, begun: bool = False) -> JsonObject:
        try:
            found: Any = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.nonsense("what it answered is not a JSON object")
        if error := found.get("error"):
            refusal = self._refused(path, body, data, told_status(error), {})
            if begun and not isinstance(refusal, UpstreamError | UpstreamBusyError):
                # A request whose answer has begun was taken: whatever it says, the answer breaks off.
                raise self.nonsense(f"it says: {refusal.message}")
            raise refusal
        return found

    def _refused(
        self, path: str, body: JsonObject | None, data: bytes, status: int, headers: Mapping[str, str]
    ) -> JackfieldError:
        key = self.settings.key or ""
        if len(key) >= SHORTEST_SECRET:
            # Some repeat the key that they do not accept.
            data = data.replace(key.encode(), b"[key]")
        asked = {"model": str((body or {}).get("model")), "path": path}
        return refused(self.name, status, headers, data, **asked)


async def _beginning(response: httpx2.Response, limit: int) -> bytes:
    """All that it says, or more than the limit of it."""
    data, loop = bytearray(), asyncio.get_running_loop()
    # Who leaves the loop by itself leaves generators behind, which are closed at some time, or twice at the end.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as patience:
            async for piece in response.aiter_bytes():
                if len(data) <= limit:
                    data += piece
                if len(data) > limit and patience.when() is None:
                    patience.reschedule(loop.time() + LINGER_SECONDS)
    return bytes(data)


async def _read_to_the_end(events: AsyncIterator[bytes]) -> None:
    """Nothing is left but the end of the transfer, after which the connection can be used again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            async for _ in events:
                pass


async def _events(pieces: AsyncIterator[bytes], nonsense: Any) -> AsyncIterator[bytes]:
    """The data of server-sent events. Lines end as the standard says, and not at every line break of Unicode."""
    data: list[bytes] = []
    async for line in _lines(pieces, nonsense):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []


async def _lines(pieces: AsyncIterator[bytes], nonsense: Any) -> AsyncIterator[bytes]:
    """They end in LF, CR or both, and before the first there may be a mark of byte order."""
    rest, mark, returned = b"", codecs.BOM_UTF8, False
    async for piece in pieces:
        # Both may come apart, and the CR is the end already.
        more = piece.removeprefix(b"\n") if returned else piece
        returned = piece.endswith(b"\r")
        *lines, rest = (rest + more.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise nonsense("an event of its stream is too long")
        for line in lines:
            yield line.removeprefix(mark)
            mark = b""
