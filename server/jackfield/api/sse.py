"""Server-sent events, as OpenAI's clients read them."""

import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent

from jackfield.answer import Progress
from jackfield.backends.begun import AnyAnswer
from jackfield.choice import Delta
from jackfield.errors import JackfieldError, ShuttingDownError, UpstreamBusyError, UpstreamError, unexpected
from jackfield.protocol.base import AnswerModel
from jackfield.text.pieces import CallStart

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_LINE_BREAKS = re.compile("\x85|\u2028|\u2029".encode())
"""They may stand in JSON, and end no line of an event, but many clients' libraries take them for ends of lines."""

PROGRESS_SECONDS = 1.0
"""A long prompt's progress goes out as a comment this often; clients skip comments but see that the server lives."""


def event(data: AnswerModel, name: str = "") -> bytes:
    """One event, with its name where the dialect has names for them."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + _LINE_BREAKS.sub(_escaped, data.to_json()) + b"\n\n"


def _escaped(found: re.Match[bytes]) -> bytes:
    return f"\\u{ord(found[0].decode()):04x}".encode()


def comment(text: str) -> bytes:
    """A line that clients skip. The text may be another server's: lines of its own would be events."""
    return f": {' '.join(text.split())}\n\n".encode()


def respond(chunks: AsyncIterator[bytes], heartbeat: float) -> EventSourceResponse:
    """A stream of ready-made events, with a comment every ``heartbeat`` seconds of silence or work."""
    return EventSourceResponse(
        chunks, ping=heartbeat, ping_message_factory=lambda: ServerSentEvent(comment=_ALIVE), sep="\n"
    )


_ALIVE = "heartbeat"
HEARTBEAT = comment(_ALIVE)


async def deltas(answer: AnyAnswer) -> AsyncGenerator[Delta | bytes | JackfieldError, None]:
    """An answer's deltas, with comments on the prompt's progress between them; the work stops with the iteration.

    When the engine fails before anything was said, the error is all there is. Later it cannot be told without harm,
    since clients repeat the whole request (and tools they have run already), so the answer ends as cut off. When it
    is the server that ends, or an upstream that breaks off, the error is told in the middle too, so that nobody takes a
    part for the whole: a request that is repeated does not fail again, or goes another way. Only an answer with calls,
    which may have been run, ends as cut off even then.
    """
    begun = called = False
    last = time.monotonic()
    try:
        async for part in answer:
            if isinstance(part, Delta):
                begun = True
                called = called or any(isinstance(piece, CallStart) for piece in part.pieces)
                yield part
            elif time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                yield _progress(part)
    except Exception as error:
        failure = expected(error, answer.exchange.info.id)
        answer.exchange.failed(failure)
        ends = isinstance(failure, ShuttingDownError)
        told = ends or isinstance(failure, UpstreamError | UpstreamBusyError)
        if not begun or (told and not called):
            yield failure
            return
        logger.warning("A stream ends early: %s", failure.message)
        if told:
            yield comment(failure.message)
        for delta in answer.cut_off("shutdown" if ends else "error"):
            yield delta
    finally:
        answer.cancel()


def expected(error: Exception, request_id: str) -> JackfieldError:
    """What is told of it."""
    if isinstance(error, JackfieldError):
        return error
    logger.error("Unexpected error in a stream, request %s", request_id, exc_info=error)
    return unexpected()


def _progress(progress: Progress) -> bytes:
    return comment(f"prompt {progress.done}/{progress.total}")
