"""docs/security.md: every promise names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROMISES = re.split(r"^- ", (ROOT / "docs" / "security.md").read_text().split("## Promises")[1], flags=re.M)[1:]


def named(promise: str) -> list[tuple[str, str]]:
    """Files and functions; a test's name stands there in words."""
    found = re.findall(r"`(test_\w+\.py)`: ([\w, ]+)[;.]", " ".join(promise.split()))
    return [(file, f"test_{name.replace(' ', '_')}") for file, names in found for name in names.split(", ")]


def functions(name: str) -> set[str]:
    (file,) = (ROOT / "tests").rglob(name)
    there = ast.parse(file.read_text()).body
    return {one.name for one in there if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.partition(".")[0])
def test_every_promise_has_tests_that_there_are(promise: str) -> None:
    assert named(promise)
    assert {file for file, _ in named(promise)} == set(re.findall(r"`(test_\S+)`", promise))
    for file, function in named(promise):
        assert function in functions(file)


def test_there_are_promises() -> None:
    assert len(PROMISES) >= 10
