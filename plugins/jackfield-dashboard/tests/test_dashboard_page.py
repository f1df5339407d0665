"""The page and its files, as a browser gets them."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection

import jackfield_dashboard
from jackfield.hooks import hookimpl
from jackfield.testing import JackfieldServer, serving

STATIC = Path(jackfield_dashboard.__file__).parent / "static"
SCRIPTS = {file.name: file.read_text("utf-8") for file in STATIC.glob("*.js")}


class Closed:
    """Lets nobody in."""

    @hookimpl
    def authenticate(self, request: HTTPConnection) -> None:
        return None


class Page(HTMLParser):
    """All elements of a page, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JackfieldServer]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("JACKFIELD_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        with serving(jackfield_tokenizer, "dashboard", ("closed", Closed())) as server:
            yield server


@pytest.fixture(scope="module")
def page(server: JackfieldServer) -> Page:
    return Page(server.get("/dashboard/").text)


def test_the_page_opens_without_a_key(server: JackfieldServer) -> None:
    reply = server.get("/dashboard/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<title>Jackfield</title>" in reply.text
    way = server.get("/dashboard")
    # Relative, for proxies that serve it below a prefix.
    assert (way.status, way.headers["location"]) == (308, "dashboard/")


@pytest.mark.parametrize("name", sorted(file.name for file in STATIC.iterdir() if file.name != "index.html"))
def test_so_do_its_files(server: JackfieldServer, name: str) -> None:
    reply = server.get(f"/dashboard/{name}")
    assert (reply.status, reply.text) == (200, (STATIC / name).read_text("utf-8"))
    types = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    assert reply.headers["content-type"] == types[Path(name).suffix]
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["index.html", "nothing.js", "../__init__.py", "%2e%2e/__init__.py", "state", "events"]
)
def test_nothing_else_is_open(server: JackfieldServer, path: str) -> None:
    assert server.get(f"/dashboard/{path}").status == 401


def test_nobody_else_is_asked_for_anything(server: JackfieldServer, page: Page) -> None:
    policy = server.get("/dashboard/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert rules["require-trusted-types-for"] == "'script'"
    addresses = [*page.all("script", "img"), *page.all("link")]
    for address in (element.get("src") or element.get("href") for element in addresses):
        assert (STATIC / str(address)).is_file()
    for name, text in {**SCRIPTS, "dashboard.css": (STATIC / "dashboard.css").read_text("utf-8")}.items():
        foreign = re.findall(r"https?://[^\s\"']+", text)
        assert foreign in ([], ["http://www.w3.org/2000/svg"]), name


def test_all_modules_are_there() -> None:
    imported = {name for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert imported | {"main.js", "theme.js"} == set(SCRIPTS)


def test_no_text_becomes_markup(page: Page) -> None:
    for name, text in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
    assert all("src" in script for script in page.all("script"))
    assert not page.all("style")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_the_key_gets_into_no_address() -> None:
    assert "Authorization: `Bearer ${key}`" in SCRIPTS["api.js"]
    assert not any("EventSource(" in text or "searchParams" in text for text in SCRIPTS.values())
    assert {name for name, text in SCRIPTS.items() if "localStorage" in text} == {"main.js", "theme.js"}


def test_everything_has_a_name(page: Page) -> None:
    labelled = {label["for"] for label in page.all("label")}
    assert {field["id"] for field in page.all("input", "select", "textarea")} <= labelled
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name) is None or attributes[name] in ids
    targets = [str(link["href"]).removeprefix("#") for link in page.all("a")]
    assert set(targets) <= set(ids)


def test_every_part_that_scripts_ask_for_is_there(page: Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.elements}
    for name, text in SCRIPTS.items():
        assert set(re.findall(r'part\("([^"]+)"\)', text)) <= ids, name
