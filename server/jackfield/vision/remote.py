"""Images on other servers, where the settings allow them.

Whoever sends the request names the address, so nothing that is not public is ever connected to: names are resolved
here, once, and what was checked is what is connected to. Nor does anything lead on to somewhere else.
"""

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

import h11

from jackfield.vision.data_url import too_large
from jackfield.vision.errors import ImageError

SECONDS = 15.0
"""How long it may take to get a file."""
CHUNK = 1 << 16
PORTS = {"http": 80, "https": 443}
INSTEAD = "Send the image itself, as a data: URL."

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""Stands for IPv4 addresses, of which ``is_global`` knows nothing (RFC 6052)."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask whom for."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def name(self) -> str:
        """The host as HTTP's header of that name has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


async def fetch(url: str, limit: int) -> bytes:
    """The file at an ``http:`` or ``https:`` URL.

    Raises:
        ImageError: it cannot be had, is larger than ``limit`` bytes, or is not on a public server.
    """
    target = _target(url)
    try:
        async with asyncio.timeout(SECONDS):
            return await _get(target, await _addresses(target), limit)
    except TimeoutError:
        raise _failed(f"did not come within {SECONDS:g} seconds") from None
    except (OSError, h11.ProtocolError) as error:
        raise _failed(f"cannot be fetched ({error})") from None


def _failed(reason: str) -> ImageError:
    return ImageError("failed_to_download_image", reason, INSTEAD)


def _target(url: str) -> Target:
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port or PORTS[parts.scheme]
    except ValueError:
        host, port = "", 0
    if not host or parts.username is not None:
        raise ImageError("invalid_image_url", "has a URL with no server in it, or with a user", INSTEAD)
    return Target(parts.scheme, host, port, _path(parts))


def _path(parts: SplitResult) -> str:
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~?") for part in (parts.path or "/", parts.query))
    return f"{path}?{query}" if query else path


async def _addresses(target: Target) -> list[str]:
    """Where the host is, if all of that is public."""
    found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses or not all(map(is_public, addresses)):
        raise ImageError("invalid_image_url", "is on a server that is not public", INSTEAD)
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, and so is whatever it may stand for."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return all(one.is_global and not one.is_multicast for one in (ip, *_inner(ip)))


def _inner(ip: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in TRANSLATED else None
    return [one for one in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ()), translated) if one is not None]


async def _get(target: Target, addresses: list[str], limit: int) -> bytes:
    reader, writer = await _connect(target, addresses)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", target.name), ("User-Agent", "jackfield"), ("Accept", "image/*")]
        headers += [("Accept-Encoding", "identity"), ("Connection", "close")]
        writer.write(connection.send(h11.Request(method="GET", target=target.path, headers=headers)) or b"")
        return await _body(connection, reader, limit)
    finally:
        # Saying goodbye could take as long as the other side likes.
        writer.transport.abort()


async def _connect(target: Target, addresses: list[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    encryption = ssl.create_default_context() if target.scheme == "https" else None
    name = target.host if encryption else None
    for address in addresses[:-1]:
        try:
            return await asyncio.open_connection(address, target.port, ssl=encryption, server_hostname=name)
        except OSError:
            continue
    return await asyncio.open_connection(addresses[-1], target.port, ssl=encryption, server_hostname=name)


async def _body(connection: h11.Connection, reader: asyncio.StreamReader, limit: int) -> bytes:
    data = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(CHUNK))
        elif isinstance(event, h11.Response):
            _check(event)
        elif isinstance(event, h11.Data):
            data += event.data
            if len(data) > limit:
                raise too_large(limit)
        elif not isinstance(event, h11.InformationalResponse):
            return bytes(data)


def _check(response: h11.Response) -> None:
    if 300 <= response.status_code < 400:
        raise _failed("is said to be somewhere else, to which nobody follows here")
    if response.status_code != 200:
        raise _failed(f"cannot be fetched (its server answers {response.status_code})")
    if dict(response.headers).get(b"content-encoding", b"identity") != b"identity":
        raise _failed("comes in an encoding that was not asked for")
