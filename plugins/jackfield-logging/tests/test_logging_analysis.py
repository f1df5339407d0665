"""Telling code from prose, and small work from large."""

import pytest

from jackfield_logging.analysis import analyse, complexity
from jackfield_logging.conversation import Passage

PYTHON = '''
from dataclasses import dataclass

@dataclass
class Point:
    """A place on the map."""

    x: float
    y: float

    def length(self) -> float:
        # By Pythagoras.
        return (self.x**2 + self.y**2) ** 0.5
'''
TYPESCRIPT = """
import { readFile } from "node:fs/promises";

export async function load(path: string): Promise<Config> {
  const text = await readFile(path, "utf8");
  return JSON.parse(text);
}
"""
PROSE = """
Dear team,

please have a look at the report on last quarter (it came on Monday). We should talk about three things:

- what it says about customers who left;
- whether the numbers add up, since some look odd to me;
- and who writes the answer.

If there is time, read the appendix as well. I would return to the first point later, for it matters most.
"""


def share(*texts: str, limit: int = 100_000) -> float | None:
    return analyse([Passage("user", text) for text in texts], limit).code_share


@pytest.mark.parametrize("code", [PYTHON, TYPESCRIPT, '{\n  "a": 1,\n  "b": [2, 3]\n}', "<ul>\n  <li>One</li>\n</ul>"])
def test_code_is_code(code: str) -> None:
    assert share(code) == 1.0


def test_prose_is_none() -> None:
    found = share(PROSE)
    assert found is not None and found < 0.1


def test_fences_decide() -> None:
    assert share("```\nwords that look like prose\n```") == 1.0
    assert share("```markdown\nx = 1;\n```") == 0.0
    assert share("```\nabcde\n```\nabcde") == 0.5


def test_a_share_is_of_characters() -> None:
    assert share("f(x);", "five.") == 0.5
    assert share("f(x);", "a" * 45) == 0.1


def test_code_goes_on_below_its_beginning() -> None:
    assert share("def f():\n    some words\n    and more") == 1.0
    assert share("    x = 1;\n    some words") == 0.38


def test_nothing_to_look_at_has_no_share() -> None:
    assert (share(), share("", " \n\t"), share("text", limit=0)) == (None, None, None)


def test_the_newest_text_is_looked_at_first() -> None:
    assert share("x = 1;", "prose of 18 chars.", limit=18) == 0.0
    assert share("prose of 18 chars.", "x = 1;", limit=6) == 1.0


def test_all_characters_are_counted() -> None:
    assert analyse([Passage("user", "abc"), Passage("user", "de")], 1).characters == 5


@pytest.mark.parametrize("nasty", ["a" * 10**7, "(" * 10**7, "<a " * 10**6, "x =" * 10**6, "\n" * 10**6, "f(" * 10**6])
def test_a_huge_prompt_is_no_hang(nasty: str) -> None:
    assert analyse([Passage("user", nasty)], 65_536).characters == len(nasty)


def test_no_more_is_looked_at_than_asked() -> None:
    assert share("prose of 18 chars.\nx = 1;", limit=18) == 0.0
    assert share("a" * 400 + "; x == y;") == 0.0  # a line of more than 400 characters


@pytest.mark.parametrize(
    ("tokens", "messages", "tools", "code", "expected"),
    [
        (0, 0, 0, None, 0.0),
        (256, 0, 0, None, 0.06),
        (32_768, 0, 0, None, 0.4),
        (10**6, 32, 0, 0.0, 0.6),
        (10**6, 1000, 16, 0.0, 0.8),
        (10**6, 1000, 1000, 1.0, 1.0),
    ],
)
def test_complexity_is_the_weighted_sum(
    tokens: int, messages: int, tools: int, code: float | None, expected: float
) -> None:
    assert complexity({"prompt_tokens": tokens, "messages": messages, "tools": tools}, code) == expected


def test_complexity_needs_no_data() -> None:
    assert complexity({"prompt_tokens": None}, None) == 0.0
