"""Clients that read a byte now and then, or nothing, or send half of what they announce: others do not notice them."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest
from caller import PATIENCE, ask, chat, is_well, post

from serving import Server

SMALL = 4096
"""Bytes that a socket takes before somebody reads them; the system makes a little more of it."""
ENDLESS = {"prompt": "hi", "max_tokens": 3000, "ignore_eos": True, "stream": True, "logprobs": 5}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALVES = {
    "nothing": b"",
    "half a line": b"POST /v1/ch",
    "half a header": HEAD[:60],
    "no end of the headers": HEAD,
    "no body": HEAD + b"Content-Length: 100\r\n\r\n",
    "half a body": HEAD + b'Content-Length: 100\r\n\r\n{"messages": [',
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n{",
}


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    connection.connect((parts.hostname, parts.port))
    return connection


def stream(server: Server, **fields: object) -> socket.socket:
    """A request for a long answer, of which nothing has been read."""
    body = json.dumps({"model": server.model, **ENDLESS, **fields}).encode()
    connection = connect(server)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    return connection


def gauges(server: Server) -> list[float]:
    """Requests that wait, are read and are answered."""
    lines = ask(server, "GET", "/metrics")[1].decode().splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("jackfield_num_requests_") and "{" in line]


def until(server: Server, *, busy: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(gauges(server)) != busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_is_left(tiny_server: Server) -> Iterator[None]:
    """Of any client that has gone."""
    yield
    until(tiny_server, busy=False)
    assert not [line for line in tiny_server.log if "Traceback" in line or line.startswith("ERROR")]


def test_one_that_reads_a_byte_now_and_then_gets_all_of_it(tiny_server: Server) -> None:
    quickly = read(stream(tiny_server, max_tokens=200, seed=1, temperature=0), 0)
    slowly = read(stream(tiny_server, max_tokens=200, seed=1, temperature=0), 40)
    assert texts(slowly) == texts(quickly)
    assert slowly.rstrip().endswith((b"data: [DONE]", b"0"))


def read(connection: socket.socket, singly: int) -> bytes:
    """All that comes, the first bytes one by one."""
    received = b""
    with closing(connection):
        for _ in range(singly):
            received += connection.recv(1)
            time.sleep(0.05)
        while piece := connection.recv(65_536):
            received += piece
    return received


def texts(received: bytes) -> str:
    events = [line[6:] for line in received.decode().split("\n") if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


def test_those_that_never_read_hold_up_nobody(tiny_server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(closing(stream(tiny_server)))
        for _ in range(10):
            is_well(tiny_server)


def test_one_that_never_reads_is_answered_to_its_end_and_no_further(tiny_server: Server) -> None:
    """The engine does not wait for it, and then has nothing to do."""
    with closing(stream(tiny_server, max_tokens=300)):
        until(tiny_server, busy=True)
        until(tiny_server, busy=False)
        is_well(tiny_server)


@pytest.mark.parametrize("half", HALVES)
def test_those_that_send_half_hold_up_nobody(tiny_server: Server, half: str) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(closing(connect(tiny_server)))
            connection.sendall(HALVES[half])
        for _ in range(3):
            is_well(tiny_server)


def test_a_body_that_comes_byte_by_byte_is_a_request_like_any_other(tiny_server: Server) -> None:
    body = json.dumps({"model": tiny_server.model, **chat("hi")}).encode()
    with closing(connect(tiny_server)) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(len(body)):
            connection.sendall(body[at : at + 1])
            time.sleep(0.005)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    assert post(tiny_server, "/v1/chat/completions", chat("hi"))[0] == 200
