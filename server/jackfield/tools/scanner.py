"""Finding calls in an answer's text as it grows. Any cut of the text gives the same calls and the same other text."""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from jackfield.text.pieces import Piece
from jackfield.tools.offered import Tools
from jackfield.tools.readers import CallReader, MakeReader


@dataclass(frozen=True)
class Opening:
    """How a call may begin.

    Args:
        pattern: regular expression of what stands before a call; the reader begins behind it. Where the call's first
            characters are needed to know it, they stand in a lookahead.
        reader: reads the call.
        close: regular expression of what may follow the last call.
        between: regular expression of what may stand between two calls; None where there is only one.
        repaired: whether this is not how the model should write it.
    """

    pattern: str
    reader: MakeReader
    close: str = r""
    between: str | None = None
    repaired: bool = False


LINE = r"(?:^|(?<=\n))[ \t]*"
"""The beginning of a line."""

LONG_LINE = 4096
"""Characters."""


class CallScanner:
    """Separates calls from text. What does not turn out to be a call is text, unchanged.

    Blanks between text and a call, and between calls, belong to neither.

    Args:
        tools: those that may be called.
        openings: ways to begin a call; where several match at the same place, the first one counts.
    """

    def __init__(self, tools: Tools, openings: Sequence[Opening]) -> None:
        self._tools = tools
        self._openings = openings
        self._opening = regex.compile("|".join(f"(?P<o{i}>{one.pattern})" for i, one in enumerate(openings)))
        self._text = ""
        """What has not been dealt with, and before ``_at`` the line it stands in, for patterns that look back."""
        self._at = 0
        self._blanks = ""
        """Blanks that go out only if text follows."""
        self._begun: tuple[Opening, str] | None = None
        """How the call began that is being read, and the text of that."""
        self._reader: CallReader | None = None
        self._called = False
        """A call has ended, and more of its kind may follow."""
        self._calls_made = False

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        pieces: list[Piece] = []
        self._text += text
        if self._reader is not None:
            self._read(self._take(), pieces)
        while self._reader is None and (self._follow(pieces) if self._called else self._look(pieces)):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What is left when no more text comes; what began to close a call is dropped."""
        pieces: list[Piece] = []
        while self._reader is not None:
            pieces += self._reader.finish()
            self._settle(self._reader, pieces)
            pieces += self.push("")
        if not self._called:
            self._say(self._text[self._at :], pieces)
        if self._blanks and not self._calls_made:
            pieces.append(self._blanks)
        return pieces

    # --- In text -----------------------------------------------------------------------------------------------------

    def _look(self, pieces: list[Piece]) -> bool:
        """Go on to the next opening; False when more text is needed."""
        found = self._opening.search(self._text, self._at, partial=True)
        start = found.start() if found else len(self._text)
        self._say(self._text[self._at : start], pieces)
        self._at = start
        if found is None or found.partial:
            self._forget()
            return False
        self._begin(found)
        self._read(self._take(), pieces)
        return True

    def _begin(self, found: "regex.Match[str]") -> None:
        opening = self._openings[next(i for i in range(len(self._openings)) if found[f"o{i}"] is not None)]
        self._begun = opening, found[0]
        self._reader = opening.reader(self._tools, opening.repaired)
        self._at = found.end()

    def _say(self, text: str, pieces: list[Piece]) -> None:
        """Text, but for blanks at its end, of which it is not known yet what follows."""
        text = self._blanks + text
        said = text.rstrip()
        self._blanks = text[len(said) :]
        if said:
            pieces.append(said)

    # --- In a call ---------------------------------------------------------------------------------------------------

    def _read(self, text: str, pieces: list[Piece]) -> None:
        assert self._reader is not None  # noqa: S101 - by the caller
        pieces += self._reader.push(text)
        if self._reader.outcome is not None:
            self._settle(self._reader, pieces)

    def _settle(self, reader: CallReader, pieces: list[Piece]) -> None:
        """The reader knows what it was."""
        assert self._begun is not None  # noqa: S101 - there was a reader
        self._reader = None
        if reader.outcome == "call":
            self._called = self._calls_made = True
            self._blanks = ""
            self._text, self._at = reader.rest, 0
            return
        # What began like a call is text, and the search goes on behind it.
        self._text = self._begun[1] + reader.rest
        self._at = len(self._begun[1]) or min(1, len(self._text))
        self._say(self._text[: self._at], pieces)

    def _follow(self, pieces: list[Piece]) -> bool:
        """After a call: more of them, or what closes them; False when more text is needed."""
        assert self._begun is not None  # noqa: S101 - there was a call
        opening, text = self._begun[0], self._text[self._at :]
        again = None if opening.between is None else regex.match(opening.between, text, partial=True)
        close = regex.match(rf"\s*{opening.close}", text, partial=True) if opening.close else None
        if any(found is not None and found.partial for found in (again, close)):
            return False
        self._called = False
        if again is not None:
            self._at += again.end()
            self._begun = opening, again[0]
            self._reader = opening.reader(self._tools, opening.repaired)
            self._read(self._take(), pieces)
        elif close is not None:
            self._at += close.end()
        return True

    # --- The text ----------------------------------------------------------------------------------------------------

    def _take(self) -> str:
        """All that has not been dealt with."""
        text, self._text, self._at = self._text[self._at :], "", 0
        return text

    def _forget(self) -> None:
        """Keep no more than the line that the text stands in, and not all of a long one."""
        line = self._text.rfind("\n", 0, self._at)
        if line > 0:
            self._text, self._at = self._text[line:], self._at - line
        elif self._at > LONG_LINE:
            # Any character but a line break stands for the line's beginning.
            self._text, self._at = "." + self._text[self._at :], 1
