"""Stop strings: found wherever the pieces are cut, never leaked, and nothing else is lost."""

from hypothesis import given
from hypothesis import strategies as st

from jackfield.text.stops import StopMatcher

ALPHABET = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=4)


def cut(text: str, sizes: list[int]) -> list[str]:
    """``text`` in pieces of the given sizes, the rest as the last one."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    return [*pieces, text[at:]]


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """What a matcher that sees everything at once would say of the earliest end of a stop string."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                first = min(i for i in (text.find(s) for s in stops if s in text[:end]) if i >= 0)
                return text[:first], True
    return text, False


@given(ALPHABET, STOPS, st.lists(st.integers(0, 5), max_size=20))
def test_single_characters_and_any_other_cut_stop_at_a_stop_string(text, stops, sizes):
    matcher = StopMatcher(stops)
    given_out = "".join(matcher.push(piece) for piece in cut(text, sizes)) + matcher.flush()
    _, stopped = expected(text, stops)
    assert matcher.stopped is stopped
    assert text.startswith(given_out)
    assert not any(stop in given_out for stop in stops)
    if not stopped:
        assert given_out == text


@given(ALPHABET, st.text(alphabet="ab\n", min_size=1, max_size=4), st.lists(st.integers(0, 5), max_size=20))
def test_with_one_stop_string_every_cut_gives_the_same_text(text, stop, sizes):
    matcher = StopMatcher([stop])
    given_out = "".join(matcher.push(piece) for piece in cut(text, sizes)) + matcher.flush()
    assert given_out == text.split(stop)[0]


def test_only_what_may_begin_a_stop_string_is_held_back():
    matcher = StopMatcher(["</end>"])
    assert matcher.push("text <") == "text "
    assert matcher.push("b> more </en") == "<b> more "
    assert matcher.push("d> never") == ""
    assert matcher.stopped
    assert matcher.push("again") == ""


@given(ALPHABET, STOPS, st.lists(st.integers(0, 5), max_size=20))
def test_it_says_which_one_it_found(text, stops, sizes):
    matcher = StopMatcher(stops)
    given_out = "".join(matcher.push(piece) for piece in cut(text, sizes)) + matcher.flush()
    if matcher.found is None:
        assert given_out == text
    else:
        assert matcher.found in stops
        assert text.startswith(given_out + matcher.found)
