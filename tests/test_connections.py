"""Clients that are slow, that never read, or that are too many: they cost the server nothing for long."""

import asyncio
import contextlib
import inspect
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from jackfield.api.guard import HEADERS
from jackfield.connections import Limits, protocol
from serving import Server
from serving import serve_measured as serve

LIMITS = {"HEADER": "1", "BODY": "1", "WRITE": "1"}
MOST = 12
PATIENCE = 60


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    limits = {f"JACKFIELD_{name}_SECONDS": value for name, value in LIMITS.items()}
    with serve(tiny_model, JACKFIELD_MAX_CONNECTIONS=str(MOST), **limits) as server:
        yield server


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def head(server: Server, length: int, path: str = "/v1/completions") -> bytes:
    host = server.url.removeprefix("http://")
    lines = (f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    told = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            told += piece
    return told


def answers(server: Server) -> None:
    reply = httpx2.post(f"{server.api}/completions", json={"model": server.model, "prompt": "Hi", "max_tokens": 1})
    assert reply.status_code == 200


def check_headers(told: bytes) -> None:
    """Browsers are told to be careful, whoever answers."""
    for name, value in HEADERS.items():
        assert f"\r\n{name}: {value}\r\n".lower() in told.decode().lower()


@pytest.mark.parametrize(
    "sent", [b"what?\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"]
)
def test_what_is_no_http(server: Server, sent: bytes) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(sent)
        told = rest(connection)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"Invalid HTTP request received." in told
    check_headers(told)
    answers(server)


def test_half_of_the_headers(server: Server) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(head(server, 10)[:40])
        told = rest(connection)
    assert told.startswith(b"HTTP/1.1 408 ")
    check_headers(told)
    answers(server)


def test_headers_byte_by_byte(server: Server) -> None:
    """The time is for all of them, so that a byte now and then does not help."""
    with closing(connect(server)) as connection, pytest.raises(OSError):
        for byte in head(server, 10):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
    answers(server)


def test_a_client_that_says_nothing(server: Server) -> None:
    with closing(connect(server)) as connection:
        assert rest(connection).startswith(b"HTTP/1.1 408 ")


def test_half_of_a_body(server: Server) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(head(server, 1000) + b'{"model": ')
        assert rest(connection) == b""
    answers(server)


def test_a_body_that_is_announced_too_large_is_not_waited_for(server: Server) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(head(server, 1 << 40))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    answers(server)


def test_a_body_byte_by_byte(server: Server) -> None:
    with closing(connect(server)) as connection, pytest.raises(OSError):
        connection.sendall(head(server, 600))
        for _ in range(600):
            connection.sendall(b" ")
            time.sleep(0.05)
    answers(server)


def test_a_slow_body_is_read(server: Server) -> None:
    """It takes longer than a body may without coming on."""
    body = json.dumps({"model": server.model, "prompt": "Hi", "max_tokens": 1}).encode() + b" " * 30_000
    with closing(connect(server)) as connection:
        connection.sendall(head(server, len(body)))
        for start in range(0, len(body), 4000):
            connection.sendall(body[start : start + 4000])
            time.sleep(0.2)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_is_not_blamed_for_a_server_that_does_not_read() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.5)
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, http=protocol(Limits(body_seconds=0.1)), lifespan="off", log_config=None)
    config.load()
    made = partial(config.http_protocol_class, config=config, server_state=ServerState(), app_state={})
    async with await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0) as listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n" + b" " * 4_000_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


def test_a_client_that_never_reads(server: Server) -> None:
    """Its answer ends, and with it the work."""
    body = {"model": server.model, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    # So that the system's own room for it, megabytes, is full soon.
    wordy = {"n": 8, "max_tokens": 4000, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    whole = json.dumps(body | wordy).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(head(server, len(whole), "/v1/chat/completions") + whole)
        deadline = time.monotonic() + PATIENCE
        while not any("does not read its answer" in line for line in server.log) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert any("does not read its answer" in line for line in server.log)
    while _running(server) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _running(server)
    answers(server)


def _running(server: Server) -> float:
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("jackfield_num_requests_running{"))


def test_too_many_connections(server: Server) -> None:
    body = json.dumps({"model": server.model, "prompt": "Hi", "max_tokens": 1}).encode()
    with ExitStack() as stack:
        held = [stack.enter_context(closing(connect(server))) for _ in range(MOST)]
        time.sleep(0.2)
        with closing(connect(server)) as another:
            told = rest(another)
        assert told.startswith(b"HTTP/1.1 503 ")
        check_headers(told)
        assert b"Retry-After" in told
        held[0].sendall(head(server, len(body)) + body)
        assert held[0].recv(100).startswith(b"HTTP/1.1 200 ")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.HTTPError, AssertionError):
            answers(server)
            return
        time.sleep(0.1)
    raise AssertionError("it does not answer any more")


def test_uvicorn_is_as_it_was() -> None:
    """What `jackfield.connections` relies on."""
    source = inspect.getsource(H11Protocol)
    for name in ("flow = FlowControl", "connections.add(self)", "transport = transport", "conn.receive_data(data)"):
        assert f"self.{name}" in source
    assert "self.read_paused = True" in inspect.getsource(FlowControl.pause_reading)
    for method in (
        "connection_made",
        "connection_lost",
        "data_received",
        "pause_writing",
        "resume_writing",
        "send_400_response",
    ):
        assert callable(getattr(H11Protocol, method))
