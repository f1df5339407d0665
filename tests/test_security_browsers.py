"""What pages of other sites can do to a server on one's own machine: nothing, unless they are named."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from jackfield.hooks import hookimpl
from jackfield.security.key import digest
from jackfield.testing import JackfieldServer, StartServer
from jackfield.testing.reply import Reply

QUESTION = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}


def ask(server: JackfieldServer, path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> Reply:
    """As a browser sends it: the type of a form, which needs no leave."""
    address = server.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.putrequest(method, path, skip_host=True)
        body = json.dumps(QUESTION).encode() if method == "POST" else b""
        whole = {"Host": address, "Content-Type": "text/plain", "Content-Length": str(len(body))}
        for name, value in {**whole, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        told = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, told, response.read().decode())


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server(allowed_hosts=["chat.example.com", ".lan.example.com"])


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.net",
        "evil.example.net:8080",
        "localhost.evil.example.net",
        "127.0.0.1.evil.example.net",
        "chat.example.com.evil.example.net",
        "lan.example.com.evil.net",
        "[::1",
        "a@b",
    ],
)
def test_a_name_that_somebody_else_gave_the_server(server: JackfieldServer, host: str) -> None:
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/metrics", "GET")):
        reply = ask(server, path, method, Host=host)
        assert reply.status == 421, path
        assert reply.json["error"]["code"] == "unknown_host"
        assert "allowed_hosts" in " ".join(reply.json["error"]["suggestions"])
    assert not server.requests


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]:8080",
        "192.168.1.7:8080",
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "jackfield.localhost",
        "chat.example.com",
        "a.b.lan.example.com:80",
        socket.gethostname(),
    ],
)
def test_names_that_are_the_servers_own(server: JackfieldServer, host: str) -> None:
    assert ask(server, Host=host).status == 200


def test_whoever_watches_may_call_it_anything(server: JackfieldServer) -> None:
    assert ask(server, "/health", "GET", Host="probe.example.net").status == 200
    assert ask(server, "/ready", "GET", Host="probe.example.net").status == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example.net", "http://localhost:3000", "http://127.0.0.1", "null", "https://127.0.0.1:1"]
)
def test_a_page_of_another_site(server: JackfieldServer, origin: str) -> None:
    reply = ask(server, Origin=origin)
    assert reply.status == 403
    assert reply.json["error"]["code"] == "foreign_origin"
    assert "cors_origins" in reply.json["error"]["suggestions"][0]
    assert "access-control-allow-origin" not in reply.headers
    assert not server.requests


def test_the_servers_own_pages_and_programs_with_windows(server: JackfieldServer) -> None:
    for origin in (server.url, "vscode-webview://0a1b", "app://obsidian.md", "chrome-extension://abc"):
        assert ask(server, Origin=origin).status == 200


def test_nothing_is_left_to_pages_that_are_not_named(server: JackfieldServer) -> None:
    asked = {"Origin": "https://evil.example.net", "Access_Control_Request_Method": "POST"}
    reply = ask(server, method="OPTIONS", **asked)
    assert reply.status in (403, 405)
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_sites_that_are_named(jackfield_server: StartServer) -> None:
    server = jackfield_server(cors_origins=["https://chat.example.com"])
    origin = "https://chat.example.com"
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    leave = ask(server, method="OPTIONS", Origin=origin, **asked)
    assert leave.status == 200
    assert leave.headers["access-control-allow-origin"] == origin
    assert "authorization" in leave.headers["access-control-allow-headers"].lower()
    reply = ask(server, Origin=origin)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == origin
    assert ask(server, Origin="https://evil.example.net").status == 403


def test_who_has_a_key_may_come_from_anywhere(jackfield_server: StartServer, tmp_path: Path) -> None:
    secret = "jf-" + "a" * 40
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{"name": "ada", "sha256": digest(secret), "scopes": ["inference"]}]}))
    file.chmod(0o600)
    server = jackfield_server(keys_file=str(file))
    strange = {"Host": "api.example.net", "Origin": "https://chat.example.net"}
    assert ask(server, Authorization=f"Bearer {secret}", **strange).status == 200
    assert ask(server, **strange).status == 401


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/v1/nothing", "/metrics"])
def test_every_answer_tells_browsers_to_be_careful(server: JackfieldServer, path: str) -> None:
    reply = ask(server, path, "GET")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    if reply.headers["content-type"].startswith("application/json"):
        assert reply.headers["cache-control"] == "no-store"


def test_so_do_refusals(server: JackfieldServer) -> None:
    assert ask(server, Host="evil.example.net").headers["x-content-type-options"] == "nosniff"


class Talks:
    @hookimpl
    def register_routes(self) -> Iterator[WebSocketRoute]:
        async def talk(socket: WebSocket) -> None:
            await socket.accept()
            await socket.close()

        return iter([WebSocketRoute("/talk", talk)])


def test_websockets_of_other_sites(jackfield_server: StartServer) -> None:
    server = jackfield_server(("talks", Talks()))
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade |= {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert ask(server, "/talk", "GET", Origin="https://evil.example.net", **upgrade).status == 403
