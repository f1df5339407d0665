"""The rules for lines: a completion ends where it leaves its block, or at a line break once its time is over."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jackfield.text.lines import LineMatcher

CODE = st.text(alphabet="ab \t\n", max_size=40)
SIZES = st.lists(st.integers(1, 5), max_size=12)


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def matched(matcher: LineMatcher, text: str, sizes: list[int] | None = None) -> str:
    """What is given out of a text that comes in pieces."""
    given_out = ""
    for size in sizes or ():
        given_out += matcher.push(text[:size])
        text = text[size:]
    given_out += matcher.push(text)
    return given_out + ("" if matcher.stopped else matcher.flush())


def block(text: str, indentation: int) -> tuple[str, bool]:
    """The text up to the first line that is indented less, said the long way."""
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line.strip(" \t") and len(line) - len(line.lstrip(" \t")) < indentation:
            kept = lines[:number]
            while len(kept) > 1 and not kept[-1].strip(" \t"):
                kept.pop()
            return "\n".join(kept), True
    return text, False


@settings(deadline=None)
@given(CODE, SIZES, st.integers(1, 3))
def test_a_line_that_is_indented_less_ends_the_text_before_it(text: str, sizes: list[int], indentation: int) -> None:
    matcher = LineMatcher((), indentation)
    assert (matched(matcher, text, sizes), matcher.stopped) == block(text, indentation)
    assert matcher.found in (None, "")


@settings(deadline=None)
@given(CODE, SIZES)
def test_without_rules_nothing_is_changed_or_held_back(text: str, sizes: list[int]) -> None:
    matcher = LineMatcher(())
    given_out = ""
    for size in sizes:
        given_out += matcher.push(text[:size])
        text, seen = text[size:], text[:size]
        assert given_out.endswith(seen)
    assert not matcher.stopped


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_empty_lines_belong_to_the_next_one(line_break: str) -> None:
    text = f"x{line_break}{line_break}    y{line_break}{line_break}z"
    assert matched(LineMatcher((), 4), text) == f"x{line_break}{line_break}    y"


def test_a_line_break_waits_until_it_is_clear_how_the_text_goes_on() -> None:
    matcher = LineMatcher((), 2)
    assert [matcher.push(piece) for piece in ("x", "\n", " ", " ", "y", "\n", "z")] == [
        "x",
        "",
        "",
        "",
        "\n  y",
        "",
        "",
    ]
    assert (matcher.stopped, matcher.found) == (True, "")


def test_what_waited_at_the_end_is_part_of_the_text() -> None:
    assert matched(LineMatcher((), 2), "x\n ") == "x\n "


def test_once_the_time_is_over_the_text_ends_at_the_next_line_break() -> None:
    clock = Clock()
    matcher = LineMatcher((), seconds=0.25, clock=clock)
    assert matcher.push("x\ny") == "x\ny"
    clock.now += 0.2
    assert matcher.push("\nz") == "\nz"
    clock.now += 0.1
    assert matcher.push("z") == "z"
    assert not matcher.stopped
    assert matcher.push("z\nmore") == "z"
    assert matcher.found == ""


def test_time_counts_from_the_first_piece() -> None:
    clock = Clock()
    matcher = LineMatcher((), seconds=0.25, clock=clock)
    clock.now += 5
    assert matcher.push("x\ny") == "x\ny"


@pytest.mark.parametrize(
    ("text", "given_out", "word"), [("x;y\nz", "x", ";"), ("x\nz;", "x", ""), ("x\n  y;z", "x\n  y", ";")]
)
def test_stop_strings_go_on_counting(text: str, given_out: str, word: str) -> None:
    matcher = LineMatcher((";", "!"), 2)
    assert matched(matcher, text) == given_out
    assert matcher.found == word


def test_a_stop_string_may_begin_with_a_line_break() -> None:
    matcher = LineMatcher(("\n\n",), 2)
    assert [matcher.push(piece) for piece in ("x", "\n", "  y", "\n", "\n")] == ["x", "", "\n  y", "", ""]
    assert matcher.found == "\n\n"
