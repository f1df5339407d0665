"""Connections that cost the server nothing when nobody moves on them: uvicorn's protocol, with limits it does not have.

A client may take its time for its headers, for its body and for reading an answer, but not for ever, and there are only
so many connections.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from jackfield.api.guard import HEADERS

logger = logging.getLogger(__name__)

BODY_RATE = 1000
"""Bytes a second that are no attempt to keep a connection busy: less than any network has."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long clients may take, in seconds, and how many there may be."""

    header_seconds: float = 30.0
    """For all headers of a request, from the connection or its first byte on."""
    body_seconds: float = 30.0
    """For its body, or for each stretch of it that brings `BODY_RATE` bytes a second."""
    write_seconds: float = 60.0
    """Without reading anything of what waits for it."""
    max_connections: int = 4096


def protocol(limits: Limits) -> type[H11Protocol]:
    """The class of uvicorn's protocols with these limits."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


class LimitedProtocol(H11Protocol):
    """One connection. Relies on a few names inside uvicorn, which tests/test_connections.py holds it to."""

    limits = Limits()
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _stretch: int | None = None
    """Bytes of a body since somebody last looked how fast it comes."""
    _unsent = 0

    def connection_made(self, transport: Any) -> None:
        """Somebody is there."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            logger.warning("There are %d connections: another one is refused.", self.limits.max_connections)
            self._end(b"503 Service Unavailable", b"Retry-After: 5\r\n")
            return
        self._wait(self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """There is more of a request."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            if self._stretch is None:
                self._begin_stretch()
            self._stretch = (self._stretch or 0) + len(data)
            return
        self._stretch = None
        if self.conn.their_state is not h11.IDLE:
            self._wait(None)
        elif self._reading is None:
            self._wait(self.limits.header_seconds)

    def _wait(self, seconds: float | None) -> None:
        """Wait so long for what comes next; None for as long as it takes."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _begin_stretch(self) -> None:
        self._stretch = 0
        self._wait(None)
        self._reading = self.loop.call_later(self.limits.body_seconds, self._end_stretch)

    def _end_stretch(self) -> None:
        # Nothing comes while the server itself does not read.
        if self.flow.read_paused or (self._stretch or 0) >= BODY_RATE * self.limits.body_seconds:
            self._begin_stretch()
        else:
            self._too_slow()

    def _too_slow(self) -> None:
        self._reading = None
        if self.transport.is_closing():
            return
        logger.info("A client was too slow with its request: the connection is closed.")
        if self.conn.our_state is h11.IDLE:
            self._end(b"408 Request Timeout")
        else:
            self.transport.close()

    def _end(self, status: bytes, headers: bytes = b"") -> None:
        """Say why, and close; h11 is not asked, since there is no request."""
        safe = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode()
        last = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
        self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + headers + safe + last)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [*HEADERS.items(), ("Content-Type", "text/plain; charset=utf-8"), ("Connection", "close")]
            answer = h11.Response(status_code=400, reason=b"Bad Request", headers=headers)
            for event in (answer, h11.Data(data=msg.encode()), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read what waits for it."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(self.limits.write_seconds, self._does_not_read)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def _does_not_read(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent:
            # Slow, but it does.
            self._unsent = unsent
            self._writing = self.loop.call_later(self.limits.write_seconds, self._does_not_read)
            return
        logger.info("A client does not read its answer: the connection is closed.")
        self.transport.abort()
