"""What pages of other sites can do to a server on one's own machine: nothing, unless they are named."""

import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from jackfield.hooks import Identity, hookimpl
from jackfield.security.key import digest
from jackfield.testing import JackfieldServer, StartServer, serving
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


@pytest.fixture(scope="module")
def shared(jackfield_tokenizer: Path) -> Iterator[JackfieldServer]:
    with serving(jackfield_tokenizer, allowed_hosts=["chat.example.com", ".lan.example.com"]) as server:
        yield server


@pytest.fixture
def server(shared: JackfieldServer) -> JackfieldServer:
    shared.requests.clear()
    return shared


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.net",
        "evil.example.net:8080",
        "localhost.evil.example.net",
        "127.0.0.1.evil.example.net",
        "chat.example.com.evil.example.net",
        "lan.example.com.evil.net",
        "docker.internal",
        "evil.host.docker.internal",
        "host.docker.internal.evil.example.net",
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
        "host.docker.internal:8080",
        "host.containers.internal",
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


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_page_of_another_site_shows_as_its_own(server: JackfieldServer, site: str) -> None:
    """Browsers send no Origin with what images, scripts, styles and frames are made of."""
    for mode, kind in (("no-cors", "image"), ("no-cors", "script"), ("navigate", "iframe"), ("navigate", "object")):
        reply = ask(server, "/v1/models", "GET", Sec_Fetch_Site=site, Sec_Fetch_Mode=mode, Sec_Fetch_Dest=kind)
        assert reply.status == 403, (mode, kind)
        assert reply.json["error"]["code"] == "foreign_origin"
        assert "cors_origins" in reply.json["error"]["suggestions"][0]
    form = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(server, **form).status == 403
    assert not server.requests


def test_a_link_to_here_may_be_followed(server: JackfieldServer) -> None:
    link = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    for site in ("cross-site", "same-site", "same-origin", "none"):
        assert ask(server, "/v1/models", "GET", Sec_Fetch_Site=site, **link).status == 200, site
    own = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
    assert ask(server, "/v1/models", "GET", **own).status == 200


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
    readable = reply.headers["access-control-expose-headers"].lower().split(", ")
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(readable)
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-api-key"}
    assert ask(server, method="OPTIONS", Origin=origin, **asked).headers["x-request-id"]


def test_who_has_a_key_may_come_from_anywhere(jackfield_server: StartServer, tmp_path: Path) -> None:
    secret = "jf-" + "a" * 40
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{"name": "ada", "sha256": digest(secret), "scopes": ["inference"]}]}))
    file.chmod(0o600)
    server = jackfield_server(keys_file=str(file))
    strange = {"Host": "api.example.net", "Origin": "https://chat.example.net"}
    assert ask(server, Authorization=f"Bearer {secret}", **strange).status == 200
    assert ask(server, **strange).status == 401


class Cookies:
    """Goes by what a browser sends by itself."""

    @hookimpl
    async def authenticate(self, request: HTTPConnection) -> Identity | None:
        return Identity("ada") if "session=ada" in request.headers.get("cookie", "") else None


def test_whom_a_plugin_knows_may_have_been_tricked(jackfield_server: StartServer) -> None:
    """A page that has been let lead its own name to here sends what key it likes, and a plugin may not look at it."""
    server = jackfield_server(("cookies", Cookies()), cors_origins=["https://chat.example.com"])
    cookie = {"Cookie": "session=ada"}
    assert [ask(server, **cookie).status, ask(server).status] == [200, 401]
    assert ask(server, Origin="https://chat.example.com", **cookie).status == 200
    for known in (cookie, cookie | {"Authorization": "Bearer x"}, cookie | {"X_Api_Key": "x"}):
        assert ask(server, Origin="https://evil.example.net", **known).status == 403
        assert ask(server, Host="evil.example.net", **known).status == 421


class Serves:
    """Two pages, and a WebSocket."""

    @hookimpl
    def register_routes(self) -> list[BaseRoute]:
        async def fails(request: Request) -> Response:
            raise RuntimeError("secret detail")

        async def breaks_off(request: Request) -> Response:
            async def parts() -> AsyncIterator[bytes]:
                yield b"one"
                raise RuntimeError("secret detail")

            return StreamingResponse(parts(), media_type="text/plain")

        async def talk(socket: WebSocket) -> None:
            await socket.accept()
            await socket.close()

        return [Route("/fails", fails), Route("/breaks-off", breaks_off), WebSocketRoute("/talk", talk)]


def check_headers(reply: Reply) -> None:
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    if reply.headers["content-type"].startswith("application/json"):
        assert reply.headers["cache-control"] == "no-store"


def test_every_answer_tells_browsers_to_be_careful(jackfield_server: StartServer) -> None:
    server = jackfield_server(("serves", Serves()), cors_origins=["https://chat.example.com"])
    answers = {"/v1/models": 200, "/health": 200, "/metrics": 200, "/v1/nothing": 404, "/v1/messages": 405}
    for path, status in (answers | {"/fails": 500}).items():
        reply = ask(server, path, "GET", X_Request_ID=f"mine{path}", Origin="https://chat.example.com")
        assert (reply.status, reply.headers["x-request-id"]) == (status, f"mine{path}")
        check_headers(reply)
        assert reply.headers["access-control-allow-origin"] == "https://chat.example.com"
        assert "secret" not in reply.text
    refused = ask(server, "/v1/models", "GET", Host="evil.example.net")
    check_headers(refused)
    assert (refused.status, refused.headers["x-request-id"][:4]) == (421, "req_")


def test_an_unexpected_failure_is_told_in_anthropics_words(jackfield_server: StartServer) -> None:
    reply = ask(jackfield_server(("serves", Serves())), "/fails", "GET", Anthropic_Version="2023-06-01")
    assert (reply.status, reply.json["error"]["type"]) == (500, "api_error")
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]


def test_an_answer_that_breaks_off_is_not_made_whole(jackfield_server: StartServer) -> None:
    server = jackfield_server(("serves", Serves()))
    with pytest.raises(http.client.IncompleteRead):
        ask(server, "/breaks-off", "GET")
    assert server.get("/health").status == 200


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_websockets_of_other_sites(jackfield_server: StartServer) -> None:
    server = jackfield_server(("serves", Serves()))
    tricks = ({"Origin": "https://evil.example.net"}, {"Host": "evil.example.net"}, {"Sec_Fetch_Site": "cross-site"})
    for trick in tricks:
        assert ask(server, "/talk", "GET", **UPGRADE, **trick).status == 403, trick
    assert ask(server, "/talk", "GET", **UPGRADE, Origin=server.url).status == 101
