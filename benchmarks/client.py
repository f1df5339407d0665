"""The measuring client: one streamed chat request at a time over a plain socket, with a clock beside it.

It shares its cores with the servers it measures, so it does little: no HTTP library, one connection a request, one JSON
document a token. What it costs all the same is measured too (see ``scenarios.measured``).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Clock = Callable[[], float]
Message = Mapping[str, str]
"""Of a conversation: ``role`` and ``content``."""


class RequestFailedError(Exception):
    """A server's answer that cannot be measured."""


FAILURES = (RequestFailedError, OSError, EOFError, ValueError, TimeoutError)
"""What a request may raise: no server, a broken answer, none in time."""


@dataclass(frozen=True)
class Target:
    """A running server, and how to ask it for text."""

    host: str
    port: int
    model: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 1800.0
    clock: Clock = time.perf_counter


@dataclass(frozen=True)
class Reply:
    """One answer: when its parts came, by the target's clock, the token counts that the server reported, its text."""

    sent: float
    first: float
    last: float
    done: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt; 0 from a server that does not say."""
    text: str = ""

    @property
    def time_to_first_token(self) -> float:
        """Seconds from sending the request to the first piece of text."""
        return self.first - self.sent

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first one."""
        if self.completion_tokens < 2 or self.last <= self.first:
            raise RequestFailedError(f"too short to measure: {self.completion_tokens} tokens")
        return (self.completion_tokens - 1) / (self.last - self.first)


async def chat(
    target: Target, prompt: str | Sequence[Message], max_tokens: int, arrivals: list[float] | None = None
) -> Reply:
    """Ask for a streamed answer of up to ``max_tokens`` tokens and time it.

    Args:
        target: whom to ask.
        prompt: what the user says, or a whole conversation.
        max_tokens: the most that is asked for.
        arrivals: is told when each piece of text comes, for those who do not wait for the end.
    """
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.extra,
    }
    async with asyncio.timeout(target.timeout):
        sent = target.clock()
        reader, writer = await send(target, "POST", "/v1/chat/completions", json.dumps(body).encode())
        try:
            stream = events(body_pieces(*await start_of_answer(reader)))
            return await time_events(target.clock, sent, stream, [] if arrivals is None else arrivals)
        finally:
            writer.close()


async def get(target: Target, path: str) -> bytes:
    """The body of a successful GET."""
    reader, writer = await send(target, "GET", path)
    try:
        return b"".join([piece async for piece in body_pieces(*await start_of_answer(reader))])
    finally:
        writer.close()


async def time_events(clock: Clock, sent: float, stream: AsyncIterator[dict[str, Any]], arrivals: list[float]) -> Reply:
    """Read a stream to its end, noting when text came."""
    text = ""
    usage: dict[str, Any] = {}
    async for event in stream:
        if "error" in event:
            raise RequestFailedError(f"the server broke off: {event['error']}")
        if generated(event, "content", "reasoning", "reasoning_content"):
            arrivals.append(clock())
        text += generated(event, "content")
        usage = event.get("usage") or usage
    if not arrivals:
        raise RequestFailedError("the answer has no text")
    if not usage:
        raise RequestFailedError("the answer has no token counts (stream_options.include_usage)")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    counts = (usage["prompt_tokens"], usage["completion_tokens"], cached)
    return Reply(sent, arrivals[0], arrivals[-1], clock(), *counts, text)


def generated(event: dict[str, Any], *keys: str) -> str:
    """The text that a chunk carries under these keys."""
    deltas = [choice.get("delta", {}) for choice in event.get("choices", [])]
    return "".join(delta.get(key) or "" for delta in deltas for key in keys)


# --- just enough HTTP -----------------------------------------------------------------------------------------------


async def send(
    target: Target, method: str, path: str, body: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and send one request on it."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return reader, writer


async def start_of_answer(reader: asyncio.StreamReader) -> tuple[asyncio.StreamReader, dict[str, str]]:
    """Read the status line and the headers; anything but 200 raises."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if status.split(" ")[1] != "200":
        told = b"".join([piece async for piece in body_pieces(reader, headers)])
        raise RequestFailedError(f"{status}: {told[:300].decode(errors='replace')}")
    return reader, headers


async def body_pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The body as it arrives, whether chunked or up to the end of the connection."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := await chunk_size(reader):
            yield await reader.readexactly(size)
            await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(65536):
            yield piece


async def chunk_size(reader: asyncio.StreamReader) -> int:
    """The length that stands before each chunk; 0 before the end."""
    line = await reader.readline()
    if not line:
        raise RequestFailedError("the connection broke off")
    return int(line.split(b";")[0], 16)


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON documents of an event stream, up to ``[DONE]``; comments and blank lines are passed over."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if line.startswith(b"data:"):
                yield json.loads(data)
