"""The page and its files, as a browser gets them."""

from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from starlette.requests import HTTPConnection

from jackfield.hooks import Identity, hookimpl
from jackfield.testing import JackfieldServer, StartServer


class Page(HTMLParser):
    """All elements of a page, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, *tags: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.elements if tag in tags)


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server("page")


def test_the_page_is_served(server: JackfieldServer) -> None:
    reply = server.get("/page/")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert "<title>" in reply.text


def test_its_files_come_from_this_server_alone(server: JackfieldServer) -> None:
    page = Page(server.get("/page/").text)
    files = [script["src"] for script in page.all("script")]
    files += [link["href"] for link in page.all("link") if link["rel"] == "stylesheet"]
    assert sorted(map(str, files)) == ["page.css", "page.js"]
    for file in files:
        reply = server.get(f"/page/{file}")
        assert reply.status == 200
        assert "//" not in reply.text.replace("// ", ""), "an address of somebody else"
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in str(policy)


def test_it_can_be_used_without_seeing_it(server: JackfieldServer) -> None:
    page = Page(server.get("/page/").text)
    assert [html["lang"] for html in page.all("html")] == ["en"]
    labelled = {label["for"] for label in page.all("label")}
    assert {field["id"] for field in page.all("input", "select", "textarea")} == labelled
    assert {element.get("role") for element in page.all("main", "p")} >= {"log", "status"}


def test_it_is_dark_where_that_is_wanted(server: JackfieldServer) -> None:
    assert "prefers-color-scheme: dark" in server.get("/page/page.css").text


def test_what_the_page_asks_is_there(server: JackfieldServer) -> None:
    script = server.get("/page/page.js").text
    assert all(f'ask("{path}"' in script for path in ("models", "chat/completions"))
    assert server.get("/v1/models").json["data"][0]["id"]
    server.says("Good morning.")
    assert server.chat("Hi", stream=True).content == "Good morning."


class Door:
    """Knows one key."""

    @hookimpl
    def authenticate(self, request: HTTPConnection) -> Identity | None:
        return Identity("me") if request.headers.get("authorization") == "Bearer mine" else None


def test_it_opens_without_a_key_and_asks_for_one(jackfield_server: StartServer) -> None:
    server = jackfield_server("page", ("door", Door()))
    page = Page(server.get("/page/").text)
    files = ["", *(script["src"] for script in page.all("script")), "page.css"]
    assert [server.get(f"/page/{file}").status for file in files] == [200] * 3
    assert server.get("/v1/models").status == 401
    assert server.get("/v1/models", headers={"Authorization": "Bearer mine"}).status == 200
    assert "key" in {field["id"] for field in page.all("input")}
