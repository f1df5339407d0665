"""Images on other servers: fetched from public ones alone, within bounds, and nothing is followed."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from jackfield.vision import remote
from jackfield.vision.errors import ImageError
from jackfield.vision.reader import ImageLimits, ImageReader
from test_vision import OWN, ImageProcessor, asked, file, noise

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LIMIT = 10_000
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine count as public, where the servers of these tests are."""
    monkeypatch.setattr(remote, "is_public", lambda address: address.startswith(("127.", "::1")))


def says(answer: bytes, asked_for: list[bytes] | None = None, *, pause: bytes = b"") -> Answer:
    """A server that answers so; what comes after ``pause`` never comes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if asked_for is not None:
            asked_for.append(request)
        before, found, _ = answer.partition(pause) if pause else (answer, b"", b"")
        writer.write(before)
        await writer.drain()
        if found:
            await reader.read()
        writer.close()

    return handle


@asynccontextmanager
async def serving(handle: Answer, **options: Any) -> AsyncIterator[int]:
    """Its port."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        # Let it notice that its client is gone, or it complains when the loop ends.
        await asyncio.sleep(0.05)


def fetched(handle: Answer, path: str = "/a.png", host: str = "127.0.0.1", limit: int = LIMIT) -> bytes:
    async def scenario() -> bytes:
        async with serving(handle) as port:
            return await remote.fetch(f"http://{host}:{port}{path}", limit)

    return asyncio.run(scenario())


def refused(handle: Answer, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        fetched(handle, **options)
    assert caught.value.suggestion
    return caught.value


# ---------------------------------------------------------------------------------------- what may be asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::c0a8:101", "2002:7f00:1::",
        "2001:0:53aa:64c::8000:f227", "not an address",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not remote.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_addresses_that_are(address: str) -> None:
    assert remote.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1"])
def test_this_machine_is_never_connected_to(host: str) -> None:
    seen: list[bytes] = []
    error = refused(says(OK + b"\r\n", seen), host=host)
    assert (error.code, seen) == ("invalid_image_url", [])
    assert "not public" in str(error)


def test_a_name_with_one_private_address_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever owns it could answer with either, as they like."""

    def both(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("1.1.1.1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert "not public" in str(refused(says(OK + b"\r\n"), host="two.example"))


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a.png",
        "https://user@example.com/",
        "http://a:b@example.com/",
        "http://[::1/",
        "http://a:99999/",
    ],
)
def test_urls_without_a_server_or_with_a_user(url: str) -> None:
    with pytest.raises(ImageError, match="no server in it") as caught:
        asyncio.run(remote.fetch(url, LIMIT))
    assert caught.value.code == "invalid_image_url"


# ---------------------------------------------------------------------------------------- what comes back


def test_a_file_is_fetched_and_nothing_told_but_where_it_is(public: None) -> None:
    seen: list[bytes] = []
    answer = OK + b"Content-Type: image/png\r\nContent-Length: 5\r\n\r\n12345"
    assert fetched(says(answer, seen), "/ä b/c.png?x=1&y=%20ü") == b"12345"
    head, *headers = seen[0].decode().strip().split("\r\n")
    assert head == "GET /%C3%A4%20b/c.png?x=1&y=%20%C3%BC HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in headers}
    assert names == {"host", "user-agent", "accept", "accept-encoding", "connection"}


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n12\r\n3\r\n345\r\n0\r\n\r\n",
        OK + b"\r\n12345",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\n12345",
    ],
    ids=["chunked", "to the end", "after hints"],
)
def test_all_ways_to_send_a_body(public: None, answer: bytes) -> None:
    assert fetched(says(answer)) == b"12345"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n", "somewhere else"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answers 404"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "answers 204"),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\n1", "encoding"),
        (b"SSH-2.0-OpenSSH\r\n", "cannot be fetched"),
        (OK + b"Content-Length: 9\r\n\r\n12345", "cannot be fetched"),
        (b"", "cannot be fetched"),
        (OK + b"X: " + b"x" * 100_000, "cannot be fetched"),
    ],
)
def test_what_is_no_file_is_refused(public: None, answer: bytes, words: str) -> None:
    error = refused(says(answer))
    assert error.code == "failed_to_download_image"
    assert words in str(error)


@pytest.mark.parametrize("head", [b"Content-Length: 10001\r\n\r\n", b"\r\n"], ids=["told", "not told"])
def test_files_that_are_too_large(public: None, head: bytes) -> None:
    assert refused(says(OK + head + b"1" * 10_001)).code == "image_file_too_large"


def test_who_takes_too_long_is_left(public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SECONDS", 0.2)
    for answer in (b"|", b"HTTP/1.1 200|", OK + b"Content-Length: 9\r\n\r\n123|"):
        assert "within 0.2 seconds" in str(refused(says(answer, pause=b"|")))


def test_nobody_there(public: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ImageError, match="cannot be fetched"):
            asyncio.run(remote.fetch(f"http://127.0.0.1:{free.getsockname()[1]}/", LIMIT))


def test_another_address_of_a_name_is_tried(public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(_host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in ("127.0.0.9", "127.0.0.1")]

    async def scenario() -> bytes:
        async with serving(says(OK + b"\r\nabc")) as port:
            monkeypatch.setattr(socket, "getaddrinfo", two)
            return await remote.fetch(f"http://two.example:{port}/", LIMIT)

    assert asyncio.run(scenario()) == b"abc"


def test_certificates_are_checked(public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    authority = trustme.CA()
    encryption = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(encryption)

    async def scenario(host: str) -> bytes:
        async with serving(says(OK + b"\r\nabc"), ssl=encryption) as port:
            return await remote.fetch(f"https://{host}:{port}/", LIMIT)

    with pytest.raises(ImageError, match="certificate"):
        asyncio.run(scenario("localhost"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr(ssl, "create_default_context", lambda *_: trusting)
    assert asyncio.run(scenario("localhost")) == b"abc"
    with pytest.raises(ImageError, match="certificate"):
        asyncio.run(scenario("127.0.0.1"))


def test_the_host_is_named_as_http_wants_it() -> None:
    assert remote.Target("https", "example.com", 443, "/").name == "example.com"
    assert remote.Target("https", "example.com", 80, "/").name == "example.com:80"
    assert remote.Target("http", "::1", 8080, "/").name == "[::1]:8080"


# ---------------------------------------------------------------------------------------- in a request


def test_an_allowed_image_becomes_a_picture(public: None) -> None:
    data = file(noise(28, 28))

    async def scenario() -> tuple[int, ...]:
        async with serving(says(OK + b"\r\n" + data)) as port:
            request = asked(f"http://127.0.0.1:{port}/a.png")
            pictures = await ImageReader(ImageProcessor(OWN), ImageLimits(remote=True)).read(request)
            (picture,) = pictures.read.values()
            return picture.pixels.shape

    assert asyncio.run(scenario()) == (28, 28, 3)


def test_nothing_is_asked_of_anybody_unless_it_is_allowed(public: None) -> None:
    seen: list[bytes] = []

    async def scenario() -> None:
        async with serving(says(OK + b"\r\n", seen)) as port:
            request = asked(f"http://127.0.0.1:{port}/a.png")
            with pytest.raises(Exception, match="on another server"):
                await ImageReader(ImageProcessor(OWN), ImageLimits()).read(request)

    asyncio.run(scenario())
    assert seen == []
