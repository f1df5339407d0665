"""A long text made shorter: its beginning, its end, what declares something, and the lines that match a question."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from jackfield_compression.signatures import is_code, signatures

LONGEST_PIECE = 300
"""Characters. Longer lines, as of JSON without line breaks, are cut into pieces, which are treated as lines are."""

_WORD = re.compile(r"[^\W_]{3,}")
_COMMON = """
the and for are was were what which where when who why how does did has have had can could should would will you your
with this that these those from into not but its our please tell show give find again now use used there then they them
been being about any all out one some more than also just like get got let see make made need want
"""
_COMMON_WORDS = frozenset(_COMMON.split())


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many lines are kept."""

    head: int
    tail: int
    matching: int

    @property
    def longest(self) -> int:
        """Texts up to this many lines are kept whole: their excerpts, with what marks the gaps, are no longer."""
        return 2 * (self.head + self.tail + self.matching) + 1

    def halved(self) -> "Allowance":
        """Half as many of each; in the end none."""
        return Allowance(self.head // 2, self.tail // 2, self.matching // 2)

    def __bool__(self) -> bool:
        return bool(self.head or self.tail or self.matching)


def question_words(text: str) -> frozenset[str]:
    """The words of a question that lines are looked for by."""
    return frozenset(word.lower() for word in _WORD.findall(text)) - _COMMON_WORDS


def excerpt(text: str, allowance: Allowance, words: Collection[str], path: str = "") -> str:
    """``text``, or what is kept of it when it is long.

    Args:
        text: as it is.
        allowance: how much to keep.
        words: lines with these are looked for in the middle.
        path: of the file it comes from; of code the signatures are kept rather than head and tail.
    """
    parts = pieces(text)
    if len(parts) <= allowance.longest:
        return text
    kept = _ends(len(parts), allowance)
    if is_code(path):
        found = _declared(path, text)
        kept = {found[index] for index in _ends(len(found), allowance)} or kept
    return "".join(_joined(parts, {*kept, *matches(parts, allowance.matching, words)}))


def pieces(text: str) -> list[str]:
    """Lines, or parts of long ones; together they are the text."""
    return [part for line in text.splitlines(keepends=True) for part in _parts(line)]


def _declared(path: str, text: str) -> list[int]:
    """The pieces that are of lines that declare something."""
    lines = text.splitlines(keepends=True)
    declared = signatures(path, lines)
    numbers = (number for number, line in enumerate(lines) for _ in _parts(line))
    return [index for index, number in enumerate(numbers) if number in declared]


def _parts(line: str) -> Iterator[str]:
    while len(line) > LONGEST_PIECE:
        window = line[:LONGEST_PIECE]
        cut = max(window.rfind(" "), window.rfind(",")) + 1 or LONGEST_PIECE
        yield line[:cut]
        line = line[cut:]
    yield line


def _ends(length: int, allowance: Allowance) -> set[int]:
    return {*range(min(allowance.head, length)), *range(max(0, length - allowance.tail), length)}


def matches(lines: Sequence[str], count: int, words: Collection[str]) -> list[int]:
    """Of all lines the so many that share the most, and the rarest, words with the question; the best first."""
    found = [{word.lower() for word in _WORD.findall(line)} & set(words) for line in lines]
    frequency = Counter(word for shared in found for word in shared)
    # A word that is everywhere says nothing about where to look.
    telling = {word for word, number in frequency.items() if number <= max(3, len(lines) // 5)}
    scores = {i: sum(1 / frequency[word] for word in shared & telling) for i, shared in enumerate(found)}
    return sorted((i for i in scores if scores[i] > 0), key=lambda i: (-scores[i], i))[:count]


def _joined(parts: Sequence[str], kept: Collection[int]) -> Iterator[str]:
    gap: list[str] = []
    for index, part in enumerate(parts):
        if index not in kept:
            gap.append(part)
            continue
        yield from _gap(gap)
        gap = []
        yield part
    yield from _gap(gap)


def _gap(parts: Sequence[str]) -> Iterator[str]:
    """What stands for a gap; the pieces themselves where that is no longer."""
    text = "".join(parts)
    lines = text.count("\n")
    mark = f"[{lines} lines left out]\n" if lines > 1 else f" [{len(text)} characters left out] " + "\n" * lines
    if parts:
        yield mark if len(mark) < len(text) else text
