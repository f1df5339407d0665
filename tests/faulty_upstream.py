"""A server that speaks OpenAI's API as it is told to: well, late, in part, or not at all."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def chunk(finish: str | None = None, index: int = 0, **delta: Any) -> bytes:
    """An event of a stream."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}\n\n'
DONE = b"data: [DONE]\n\n"
WELL = STREAM + chunk(role="assistant", content="") + chunk(content="Hello") + chunk(finish="stop") + USAGE + DONE


def says(data: bytes, *, then_hangs: bool = False) -> Act:
    """Sends these bytes, and closes the connection or waits until the other side does."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if then_hangs:
            await reader.read()

    return act


def refuses(status: int, body: object, **headers: str) -> Act:
    """Answers with an error."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return says("\r\n".join(lines).encode() + b"\r\n\r\n" + data)


def late(seconds: float, data: bytes) -> Act:
    """Sends these bytes after a while."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(data)
        await writer.drain()

    return act


HANGS = says(b"", then_hangs=True)


class FaultyUpstream:
    """Answers each request with the next act; when there is none, well."""

    def __init__(self) -> None:
        self.acts: deque[Act] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.hung_up = threading.Event()
        """A client has gone."""
        self.url = ""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            self.bodies.append(json.loads(await reader.readexactly(int(headers["content-length"]))))
            self.headers.append(headers)
            self.paths.append(head[0].split(" ")[1])
            await (self.acts.popleft() if self.acts else says(WELL))(reader, writer)
            self.hung_up.set()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.hung_up.set()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextmanager
def faulty_upstream() -> Iterator[FaultyUpstream]:
    """One on a free port."""
    upstream, loop = FaultyUpstream(), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(upstream.serve, "127.0.0.1", 0))
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield upstream
    finally:
        server.close()
        asyncio.run_coroutine_threadsafe(upstream.end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
