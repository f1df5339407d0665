"""docs/clients.md, as a reader follows it: what to write into which file, and what to run."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
URL, MODEL, CONTEXT_LENGTH = "http://127.0.0.1:8080", "starter", "32768"
"""Where the page has a server, what it serves, and how many tokens that takes."""


@dataclass(frozen=True)
class Block:
    """One block of code."""

    language: str
    text: str
    file: str | None
    """Where it belongs: the last name in the paragraph before it, if that ends with a colon."""


def at(text: str, url: str, model: str, context_length: int) -> str:
    """The same text, for another server than the page's."""
    text = text.replace(URL, url).replace(CONTEXT_LENGTH, str(context_length))
    return re.sub(rf"\b{MODEL}\b", model, text)


@cache
def section(title: str) -> tuple[Block, ...]:
    """The blocks below a heading."""
    (text,) = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return tuple(Block(one[1], one[2], _file(text[: one.start()])) for one in found)


def only(title: str, language: str) -> Block:
    """The one block in this language."""
    (block,) = (block for block in section(title) if block.language == language)
    return block


def _file(before: str) -> str | None:
    *_, paragraph = before.strip().split("\n\n")
    names = re.findall(r"`([\w./~-]+\.\w+)`", paragraph)
    return names[-1] if names and paragraph.endswith(":") else None
