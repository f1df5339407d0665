"""A client that hangs up stops its work at once, wherever that work is."""

import http.client
import json
import random
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from serving import Server, serve

SLOTS = 2
PATIENCE = 90
"""Seconds that something quick may take. What is abandoned here would take several minutes."""
ENDLESS = {"max_tokens": 8000, "ignore_eos": True}
PROMPT_TOKENS = {"queued": 100, "prefill": 6000, "decode": 100}
"""By phase: enough to be seen in the prefix cache, or to be abandoned half read."""

words = random.Random(0)


@pytest.fixture(scope="module")
def server(starter: Path) -> Iterator[Server]:
    with serve("starter", "--max-batch", str(SLOTS), JACKFIELD_HEARTBEAT="0.3") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server) -> Iterator[None]:
    """After each test all slots can be taken, and the log tells of no failure."""
    yield
    with ExitStack() as stack:
        for _ in range(SLOTS):
            endless(server, stack)
    assert not [line for line in server.log if "Traceback" in line or line.startswith("ERROR")]


class Call:
    """A request that has been sent."""

    def __init__(self, server: Server, path: str = "/completions", **fields: Any) -> None:
        self._connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
        self._connection.request("POST", f"/v1{path}", json.dumps({"model": server.model, **fields}))
        self._response: http.client.HTTPResponse | None = None

    def close(self) -> None:
        """Hang up."""
        if self._response:
            self._response.close()
        self._connection.close()

    def until(self, wanted: Callable[[str], bool], times: int = 1) -> None:
        """Read the stream until so many wanted lines have come."""
        self._response = self._response or self._connection.getresponse()
        deadline = time.monotonic() + PATIENCE
        while times:
            line = self._response.readline().decode().strip()
            assert not self._response.isclosed(), "the stream has ended"
            assert time.monotonic() < deadline, f"waited in vain; last came {line!r}"
            times -= wanted(line)

    def json(self) -> Any:
        """An answer that does not stream."""
        with closing(self), self._connection.getresponse() as response:
            assert response.status == 200
            return json.load(response)


def is_heartbeat(line: str) -> bool:
    return line == ": heartbeat"


def is_prefill(line: str) -> bool:
    # A machine that reads the whole prompt within a second says nothing about it.
    return line.startswith(": prompt ") or is_text(line)


def is_text(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    choice = json.loads(line.removeprefix("data: "))["choices"][0]
    return bool(choice.get("text") or choice.get("delta", {}).get("content"))


def prompt(length: int) -> list[int]:
    """Random tokens: no two prompts begin alike."""
    return [words.randrange(1000, 40_000) for _ in range(length)]


def endless(server: Server, stack: ExitStack) -> Call:
    """A stream that has a slot and keeps it until the stack is left."""
    call = stack.enter_context(closing(Call(server, prompt=prompt(8), stream=True, **ENDLESS)))
    call.until(is_text)
    return call


def was_read(server: Server, tokens: list[int]) -> bool:
    """Whether the beginning of this prompt has ever been processed."""
    usage = Call(server, prompt=tokens[:65], max_tokens=1).json()["usage"]
    return bool(usage["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("choices", [1, 8])
@pytest.mark.parametrize(
    ("phase", "sign"),
    [("queued", is_heartbeat), ("prefill", is_prefill), ("decode", is_text)],
    ids=["queued", "prefill", "decode"],
)
def test_a_stream(server: Server, phase: str, sign: Callable[[str], bool], choices: int) -> None:
    tokens = prompt(PROMPT_TOKENS[phase])
    with ExitStack() as stack:
        for _ in range(SLOTS if phase == "queued" else 0):
            endless(server, stack)
        with closing(Call(server, prompt=tokens, stream=True, n=choices, **ENDLESS)) as call:
            call.until(sign)
    assert was_read(server, tokens) == (phase != "queued")


@pytest.mark.parametrize("phase", PROMPT_TOKENS)
def test_an_answer_that_does_not_stream(server: Server, phase: str) -> None:
    tokens = prompt(PROMPT_TOKENS[phase])
    with ExitStack() as stack:
        other = endless(server, stack)
        if phase == "queued":
            endless(server, stack)
        with closing(Call(server, prompt=tokens, **ENDLESS)):
            # Between two tokens of the other stream, a slice of this prompt is read or this answer gets a token too.
            other.until(is_text, times=12)
    assert was_read(server, tokens) == (phase != "queued")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_chat(server: Server, stream: bool) -> None:
    message = {"role": "user", "content": "Count from 1 to 1000."}
    with ExitStack() as stack:
        other = endless(server, stack)
        with closing(Call(server, "/chat/completions", messages=[message], stream=stream, **ENDLESS)) as call:
            if stream:
                call.until(is_text)
            else:
                other.until(is_text, times=12)


def test_embeddings(server: Server) -> None:
    """While they are read, and while they wait for a place. What is abandoned here is more than PATIENCE can read."""
    texts = [prompt(6000) for _ in range(8)]
    with ExitStack() as stack:
        for _ in range(SLOTS):
            with closing(Call(server, "/embeddings", input=texts)):
                until_reading(server, 1)
            until_reading(server, 0)
            endless(server, stack)
        with closing(Call(server, "/embeddings", input=texts)):
            until_waiting(server, 1)
        until_waiting(server, 0)


def until_reading(server: Server, requests: int) -> None:
    until_gauge(server, "num_requests_reading", requests)


def until_waiting(server: Server, requests: int) -> None:
    until_gauge(server, "num_requests_waiting", requests)


def until_gauge(server: Server, name: str, value: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while gauge(server, name) != value:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gauge(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=PATIENCE) as response:
        (line,) = [line for line in response.read().decode().splitlines() if line.startswith(f"jackfield_{name}{{")]
    return float(line.split()[-1])


def test_many_one_after_another(server: Server) -> None:
    """In all phases at once, and before the server has looked at them."""
    for number in range(12):
        for stream in (True, False):
            with closing(Call(server, prompt=prompt(100), n=1 + number % 3, stream=stream, **ENDLESS)) as call:
                if stream and number % 2:
                    call.until(is_text)


def test_in_the_middle_of_the_request(server: Server) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    for path in ("/v1/chat/completions", "/v1/completions"):
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(f'POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n{{"mod'.encode())
