"""Whatever goes wrong, somebody is told what to do: all classes of errors, and all places that make one."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import jackfield
from jackfield.errors import Category, JackfieldError
from jackfield.testing import StartServer

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "errors.md").read_text()
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (\d+) \| `(\w+)` \|", GUIDE, re.M)}
HIDDEN = {"VisitError"}
"""Of commands that look at other servers: nobody is sent one."""


def import_everything() -> None:
    for module in pkgutil.walk_packages(jackfield.__path__, "jackfield."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)


def classes(of: type[JackfieldError] = JackfieldError) -> Iterator[type[JackfieldError]]:
    if of is JackfieldError:
        import_everything()
    yield of
    for one in of.__subclasses__():
        yield from classes(one)


def test_every_error_has_a_category_and_something_to_do() -> None:
    for one in classes():
        assert one.category in get_args(Category), one
        assert one.remedies, one
        assert all(remedy.endswith((".", "?")) for remedy in one.remedies)
        assert JackfieldError.envelope(plain(one))["error"]["suggestions"]


def plain(of: type[JackfieldError]) -> JackfieldError:
    """One about which nothing else is known."""
    error = of.__new__(of)
    JackfieldError.__init__(error, "It went wrong.")
    return error


def test_the_page_has_all_of_them() -> None:
    known = {one.code: (str(one.status), one.category) for one in classes() if one.code and one.__name__ not in HIDDEN}
    known |= {code: (str(one.status), one.category) for code, one in given_codes() if one.category != "request"}
    assert known == ROWS


def given_codes() -> Iterator[tuple[str, type[JackfieldError]]]:
    """Codes that errors are made with, beside those of their classes."""
    known = {one.__name__: one for one in classes()}
    for _, call, name in calls():
        given = {word.arg: word.value for word in call.keywords}.get("code")
        if name in known and isinstance(given, ast.Constant):
            yield str(given.value), known[name]


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """All calls of something that has a name of its own."""
    for file in (ROOT / "server" / "jackfield").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield file, node, node.func.id


def test_the_page_has_all_categories() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \| ", GUIDE.split("## All")[0], re.M)
    assert sorted(listed) == sorted(get_args(Category))


def test_errors_are_made_with_something_to_do() -> None:
    """Unless their class knows better by itself: the remedies of classes are for what nobody has thought of."""
    vague = {one.__name__ for one in classes() if not _tells(one)}
    left = [(file.name, call.lineno, name) for file, call, name in calls() if name in vague and not _suggests(call)]
    assert not left


def _tells(one: type[JackfieldError]) -> bool:
    """Whether a class makes suggestions by itself."""
    return (
        "__init__" in vars(one) and "suggestions" not in one.__init__.__code__.co_varnames and one is not JackfieldError
    )


def _suggests(call: ast.Call) -> bool:
    return any(keyword.arg in ("suggestions", None) for keyword in call.keywords)


@pytest.mark.parametrize(
    ("path", "body", "category"),
    [
        ("/v1/chat/completions", {}, "request"),
        ("/v1/chat/completions", [], "request"),
        ("/v1/chat/completions", {"model": "scripted", "messages": [], "temprature": 1}, "request"),
        ("/v1/chat/completions", {"model": "scripted", "messages": "Hi"}, "request"),
        (
            "/v1/chat/completions",
            {"model": "scripted", "messages": [{"role": "user", "content": "a" * 9999}]},
            "request",
        ),
        ("/v1/chat/completions", {"model": "gpt-5", "messages": [{"role": "user", "content": "a"}]}, "not_found"),
        ("/v1/completions", {"model": "scripted", "prompt": 1.5}, "request"),
        ("/v1/embeddings", {"model": "scripted", "input": []}, "request"),
        ("/v1/nothing", {}, "not_found"),
        ("/v1/models", {}, "request"),
        ("/v1/models/unload", {"model": "scripted"}, "busy"),
    ],
    ids=str,
)
def test_whoever_asks_wrongly_is_told_what_to_do(
    jackfield_server: StartServer, path: str, body: Any, category: str
) -> None:
    server = jackfield_server()
    for headers in ({}, {"anthropic-version": "2023-06-01"}):
        error = server.post(path, body, headers=headers).json["error"]
        assert error["category"] == category
        assert error["suggestions"]
        assert all(error["suggestions"])
