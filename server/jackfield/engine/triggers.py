"""Constraints that begin in the middle of an answer: where a trigger stands in its text, or behind its thoughts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import regex
from llguidance import LLTokenizer
from numpy.typing import NDArray

from jackfield.engine.grammar import Constraint, Grammar, GrammarMatcher, Matcher

WINDOW_BYTES = 1024
"""A trigger is looked for in so much text behind the last one."""


class TriggeredGrammars:
    """Free text in which each of several patterns starts a grammar; behind it the text is free again.

    Args:
        tokenizer: of the model.
        triggers: regular expressions and what may follow them; each ends in a literal character, and the first of
            several that match counts.
    """

    def __init__(self, tokenizer: LLTokenizer, triggers: Sequence[tuple[str, Grammar]]) -> None:
        self.tokenizer = tokenizer
        self.grammars = [grammar for _, grammar in triggers]
        patterns = [f"(?P<t{index}>{pattern})" for index, (pattern, _) in enumerate(triggers)]
        self.pattern = regex.compile("|".join(patterns).encode())
        self.ends = frozenset(pattern.encode()[-1] for pattern, _ in triggers)
        """Last bytes of triggers: a token without any of them completes none."""

    def start(self) -> "TriggeredMatcher":
        """A matcher at the beginning."""
        return TriggeredMatcher(self)


class TriggeredMatcher:
    """How far one answer has got."""

    def __init__(self, grammars: TriggeredGrammars) -> None:
        self._grammars = grammars
        self._window = b""
        """The text behind the last trigger, as far as it matters."""
        self._matcher: GrammarMatcher | None = None

    @property
    def constrains(self) -> bool:
        """Whether a grammar has been started."""
        return self._matcher is not None

    @property
    def failed(self) -> bool:
        """Whether that grammar cannot go on."""
        return self._matcher is not None and self._matcher.failed

    def advance(self, token: int) -> bool:
        """Take the token; the answer may go on in any case."""
        if self._matcher is None:
            self._look(token)
        elif self._matcher.advance(token) and not self._matcher.failed:
            self._matcher = None
        return False

    def fill(self, bits: NDArray[np.int32], row: int) -> None:
        """Write which tokens may come next."""
        assert self._matcher is not None  # noqa: S101 - it constrains
        self._matcher.fill(bits, row)

    def _look(self, token: int) -> None:
        written = self._grammars.tokenizer.decode_bytes([token])
        self._window = (self._window + written)[-WINDOW_BYTES:]
        if self._grammars.ends.isdisjoint(written):
            return
        found = self._grammars.pattern.search(self._window)
        if found is None:
            return
        # The trigger's last token may hold the beginning of what follows.
        self._window = self._window[found.end() :]
        which = next(i for i in range(len(self._grammars.grammars)) if found[f"t{i}"] is not None)
        matcher = self._grammars.grammars[which].start()
        if matcher.begin(self._grammars.tokenizer.tokenize_bytes(self._window)):
            self._matcher, self._window = matcher, b""


@dataclass(frozen=True, slots=True)
class AfterThinking:
    """A constraint for what follows the model's thoughts.

    Args:
        tokenizer: of the model.
        constraint: of what it says then.
        closing: what ends the thoughts.
        opening: the token that begins them, which the answer may begin with; None if it has been written already, in
            the prompt.
    """

    tokenizer: LLTokenizer
    constraint: Constraint
    closing: bytes
    opening: int | None

    def start(self) -> "ThinkingMatcher":
        """A matcher at the beginning."""
        return ThinkingMatcher(self)


class ThinkingMatcher:
    """How far one answer has got."""

    def __init__(self, after: AfterThinking) -> None:
        self._after = after
        self._inner: Matcher = after.constraint.start()
        self._state: Literal["undecided", "thinking", "speaking"] = "thinking" if after.opening is None else "undecided"
        self._window = b""

    @property
    def constrains(self) -> bool:
        """Thoughts are free."""
        return self._state != "thinking" and self._inner.constrains

    @property
    def failed(self) -> bool:
        """Whether what follows the thoughts cannot go on."""
        return self._inner.failed

    def advance(self, token: int) -> bool:
        """Take the token; True when nothing may come after it."""
        if self._state == "undecided":
            self._state = "thinking" if token == self._after.opening else "speaking"
            return self._state == "speaking" and self._inner.advance(token)
        if self._state == "speaking":
            return self._inner.advance(token)
        self._window = (self._window + self._after.tokenizer.decode_bytes([token]))[-WINDOW_BYTES:]
        if self._after.closing in self._window:
            self._state = "speaking"
        return False

    def fill(self, bits: NDArray[np.int32], row: int) -> None:
        """Write which tokens may come next."""
        self._inner.fill(bits, row)
        if self._state == "undecided" and self._after.opening is not None:
            word, bit = divmod(self._after.opening, 32)
            bits.view(np.uint32)[row, word] |= np.uint32(1 << bit)
