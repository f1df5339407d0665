"""What kind of work a request is, from its text and its size, in a time that does not grow with the prompt."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jackfield_logging.conversation import Passage

LINE = 400
"""Characters of a line that are looked at."""

_FENCES = ("```", "~~~")
_PROSE = ("text", "txt", "plain", "md", "markdown")
"""Fenced blocks that are not code."""

_CODE = re.compile(
    r"""
    [{}]\s*(?://.*)?$ | [)\]"'0-9]\s*;\s*(?://.*)?$                      # blocks and statements
    | ^\s*(?:[\w.*&<>:]+\s+){0,2}[\w.*&<>:]+;$
    | ^\s*(?:[@\#]\w|//|/\*|\*/|<[/!?a-zA-Z][^>]{0,100}>|[\])}]+[,;]?$) # decorators, directives, comments, markup
    | ^\s*(?:async\s+|export\s+|public\s+|private\s+|static\s+)*
      (?:def|class|fn|func|function|struct|enum|impl|interface|namespace|package|module)\s+\w+\s*[(<{:]
    | ^\s*(?:from\s+[\w.]+\s+import\b|import\s+[\w.*{"']+|using\s+[\w.:]+;|return\b.*[\w)\]"']$)
    | ^\s*(?:if|elif|else|for|while|with|try|except|finally|case|switch|match)\b.*[:{]$
    | ^\s*(?:const|let|var|val|auto|int|char|float|double|void|bool)\s+\w+\s*[=(;\[]
    | ^\s*"[^"]{1,100}"\s*:                                             # JSON
    | \w\s*(?:[-+*/%|&:]?=|==|!=|<=|>=|->|=>|::|&&|\|\|)\s*[\w"'(\[{&*-]  # operators
    | \w\([^()]*\)\s*(?:[.:;,{]|$) | ^\s*\w+(?:\.\w+)+\(                # calls
    """,
    re.VERBOSE,
)

_SIZE = math.log2(1 + 32768 / 256)


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the text of a request says."""

    characters: int
    """All there are."""
    code_share: float | None
    """Characters on lines that look like code, of those on all lines that were looked at; None without any."""


def analyse(text: Sequence[Passage], limit: int) -> Analysis:
    """Look at no more than ``limit`` characters, the newest passages first."""
    code = seen = 0
    left = limit
    for passage in reversed(text):
        if left <= 0:
            break
        own_code, own_seen = _count(passage.text[:left])
        code, seen, left = code + own_code, seen + own_seen, left - len(passage.text)
    return Analysis(sum(len(passage.text) for passage in text), round(code / seen, 2) if seen else None)


def complexity(data: Mapping[str, Any], code_share: float | None) -> float:
    """How demanding a request is, from 0 to 1.

    ``0.4 size + 0.2 turns + 0.2 tools + 0.2 code``, where ``size = log2(1 + prompt_tokens / 256) / log2(129)``,
    ``turns = messages / 32`` and ``tools = tools / 16``, none of them more than 1: a full score is a prompt of 32,768
    tokens in 32 messages, all code, with 16 tools.

    Args:
        data: of the record ``received``.
        code_share: as `analyse` found it.
    """
    tokens, messages, tools = (float(data.get(key) or 0) for key in ("prompt_tokens", "messages", "tools"))
    size = min(1.0, math.log2(1 + tokens / 256) / _SIZE)
    parts = 0.4 * size, 0.2 * min(1.0, messages / 32), 0.2 * min(1.0, tools / 16), 0.2 * (code_share or 0.0)
    return round(sum(parts), 2)


class _Lines:
    """Tells code from prose, line by line."""

    def __init__(self) -> None:
        self._fence: bool | None = None
        """Inside a fenced block: whether it is code."""
        self._indent: int | None = None
        """Of the line that began the code that goes on, where that is not fenced."""

    def is_code(self, line: str) -> bool | None:
        """Whether a line is code: in a fence, by its looks, or below such a line and further in; None for fences."""
        text = line.strip()
        if text.startswith(_FENCES):
            opening = self._fence is None
            self._fence = not text[3:].strip().lower().startswith(_PROSE) if opening else None
            return None
        return self._looks(line) if self._fence is None else self._fence

    def _looks(self, line: str) -> bool:
        indent = len(line) - len(line.lstrip())
        if self._indent is not None and indent > self._indent:
            return True
        self._indent = indent if _CODE.search(line[:LINE]) else None
        return self._indent is not None


def _count(text: str) -> tuple[int, int]:
    """Characters on lines of code, and on all lines, without the blanks around them."""
    code = seen = 0
    lines = _Lines()
    for line in text.splitlines():
        length = len(line.strip())
        is_code = lines.is_code(line) if length else None
        if is_code is not None:
            seen += length
            code += length * is_code
    return code, seen
