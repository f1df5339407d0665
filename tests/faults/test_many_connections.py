"""Two thousand connections at once, to a server that was given 256 open files."""

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from caller import PATIENCE, is_well
from watch import of_process

from jackfield.cli.serve import allow_open_files
from serving import Server, serve

CONNECTIONS = 2000
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def server(tiny_model: Path) -> Iterator[Server]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with serve(tiny_model, "--max-batch", "8") as server:
            allow_open_files()
            if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < CONNECTIONS + 200:
                pytest.skip("this machine does not grant so many open files")
            yield server
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_two_thousand_connections(server: Server) -> None:
    is_well(server)
    before = of_process(server.process.pid)[2]
    asyncio.run(crowd(server))
    is_well(server)
    deadline = time.monotonic() + PATIENCE
    while of_process(server.process.pid)[2] > before + 4:
        assert time.monotonic() < deadline, "connections are still open"
        time.sleep(0.1)
    assert not [line for line in server.log if "Traceback" in line or line.startswith("ERROR")]


async def crowd(server: Server) -> None:
    """All are connected at once and stay so; every tenth asks for an answer, the others whether there is a server."""
    parts = urlsplit(server.url)
    connections: list[Connection] = []
    try:
        while len(connections) < CONNECTIONS:
            connections.append(await asyncio.open_connection(parts.hostname, parts.port))
        for _ in range(2):
            healthy = [ask(connection, HEALTH) for connection in connections]
            assert set(await asyncio.gather(*healthy)) == {b"200"}
        answers = [ask(connection, question(server)) for connection in connections[::10]]
        assert set(await asyncio.gather(*answers)) == {b"200"}
    finally:
        for _, writer in connections:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)


def question(server: Server) -> bytes:
    body = json.dumps({"model": server.model, "prompt": "hi", "max_tokens": 4}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def ask(connection: Connection, request: bytes) -> bytes:
    """The status of the answer; the connection stays open."""
    reader, writer = connection
    writer.write(request)
    async with asyncio.timeout(PATIENCE):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    return head.split()[1]
