"""Long texts made shorter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jackfield_compression.excerpt import Allowance, excerpt, question_words
from jackfield_compression.signatures import signatures

FEW = Allowance(2, 2, 2)

PYTHON = '''\
"""A module."""
import os
LIMIT = 10


@cached
def outer(a,
          b):
    """What it does.

    More of it.
    """
    def inner():
        return a
    return inner


class Thing:
    """A thing."""
    size: int = 3

    async def grow(self): return self.size


if os.environ:
    LIMIT = 11
'''

TYPESCRIPT = """\
import { x } from "x";

export const limit = 10;

export class Thing extends Other {
  private async grow(by: number): Promise<number> {
    if (by > limit) {
      return limit;
    }
    const twice = by * 2;
    return twice;
  }
}
"""


def declared(path: str, source: str) -> list[str]:
    found = source.splitlines()
    return [found[index].strip() for index in sorted(signatures(path, source.splitlines(keepends=True)))]


def test_python_is_parsed() -> None:
    assert declared("a.py", PYTHON) == [
        "import os",
        "LIMIT = 10",
        "@cached",
        "def outer(a,",
        "b):",
        '"""What it does.',
        "class Thing:",
        '"""A thing."""',
        "size: int = 3",
        "async def grow(self): return self.size",
    ]


@pytest.mark.parametrize("mark", ["{:6}\t", "{}: ", "{:4} | ", "{}→"])
def test_line_numbers_of_tools_do_not_matter(mark: str) -> None:
    numbered = "".join(mark.format(n) + line for n, line in enumerate(PYTHON.splitlines(keepends=True), 1))
    assert signatures("a.py", numbered.splitlines(keepends=True)) == signatures(
        "a.py", PYTHON.splitlines(keepends=True)
    )


def test_broken_python_is_read_line_by_line() -> None:
    assert declared("a.py", "def f(:\n    return 1\nclass C:\n    def g(self):\n        x = 1\n") == [
        "def f(:",
        "class C:",
        "def g(self):",
    ]


def test_other_languages_are_read_line_by_line() -> None:
    assert declared("a.ts", TYPESCRIPT) == [
        'import { x } from "x";',
        "export const limit = 10;",
        "export class Thing extends Other {",
        "private async grow(by: number): Promise<number> {",
    ]


def test_code_without_line_breaks_declares_nothing() -> None:
    assert declared("a.js", "function a(){" + "x();" * 400 + "}\n") == []


def test_code_keeps_signatures_and_what_the_question_is_about() -> None:
    body = "".join(f"    value = value + {n}\n" for n in range(30))
    source = "".join(f"def function_{n}(value):\n{body}    return value\n\n\n" for n in range(3))
    source = source.replace("value + 17", "flamingo", 1)
    short = excerpt(source, Allowance(5, 5, 2), question_words("the flamingo"), "src/a.py")
    assert short.splitlines() == [
        "def function_0(value):",
        "[17 lines left out]",
        "    value = flamingo",
        "[15 lines left out]",
        "def function_1(value):",
        "[33 lines left out]",
        "def function_2(value):",
        "[33 lines left out]",
    ]


def test_the_rarest_words_count_the_most() -> None:
    text = "".join(f"error number {n}\n" for n in range(50)) + "error in flamingo\n" + "end\n" * 50
    assert "flamingo" in excerpt(text, Allowance(1, 1, 1), question_words("Which error has the flamingo?"))


def test_lines_without_end_are_cut_into_pieces() -> None:
    text = '{"rows": [' + ", ".join(f'{{"id": {n}, "name": "row {n}"}}' for n in range(2000)) + "]}"
    text = text.replace("row 1000", "flamingo")
    short = excerpt(text, FEW, question_words("flamingo"))
    assert len(short) < 3000
    assert "flamingo" in short
    assert "characters left out" in short
    assert short.startswith('{"rows"')
    assert short.endswith("]}")


def test_what_is_not_long_is_left_alone() -> None:
    text = "line\n" * FEW.longest
    assert excerpt(text, FEW, ()) == text
    assert excerpt(text + "line\n", FEW, ()) != text + "line\n"


@given(
    st.lists(st.text("ab {};\t\"'`<>()\u00e9\u4e2d", max_size=40), max_size=80).map("\n".join),
    st.builds(Allowance, *[st.integers(0, 6)] * 3),
    st.sampled_from(["", "a.py", "a.ts"]),
)
def test_an_excerpt_is_no_longer_and_final(text: str, allowance: Allowance, path: str) -> None:
    short = excerpt(text, allowance, {"aba", "bab"}, path)
    assert len(short) <= len(text) + 1
    assert excerpt(short, allowance, {"aba", "bab"}, path) == short


@pytest.mark.parametrize(
    "line", [" " * 200_000, "public " * 30_000, "<a path='x' " * 20_000, "a" * 200_000, "{" * 99_999]
)
def test_no_line_takes_long(line: str) -> None:
    # Expressions that backtrack would take hours for these.
    assert len(excerpt(f"{line}\n" * 3, FEW, {"public"}, "a.java")) < 5000
