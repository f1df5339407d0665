"""What there is to set, in words: for files, pages and tables."""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from jackfield.settings.model import Settings

HEADER = """\
# Settings of Jackfield. Take the # away from what you want to change; what is behind it is the default.
"""

TABLES = ("models", "upstreams", "plugins")
"""Settings that have a table for each name; in a file they come last, since what follows a table belongs to it."""


_BARE = re.compile("[A-Za-z0-9_-]+")
"""A key that needs no quotes."""


class Described(NamedTuple):
    """One setting."""

    name: str
    default: Any
    meaning: str
    """A sentence or two, in Markdown."""


def described(settings: type[BaseModel] = Settings) -> Iterator[Described]:
    """All settings, or those of such tables, in the order of the code."""
    for name, field in settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        meaning = " ".join((field.description or "").replace("``", "`").split())
        yield Described(name, None if default is PydanticUndefined else default, meaning)


def template() -> str:
    """A TOML file with all settings, which changes none of them."""
    last = sorted(described(), key=lambda setting: setting.name in TABLES)
    return "\n".join([HEADER, *map(_entry, last)])


def _entry(setting: Described) -> str:
    comment = textwrap.indent(textwrap.fill(setting.meaning, 116), "# ")
    if setting.name in TABLES:
        return f"{comment}\n#[{setting.name}.NAME]\n"
    # TOML has nothing that stands for nothing.
    value = "" if setting.default is None else f" {literal(setting.default)}"
    return f"{comment}\n#{setting.name} ={value}\n"


def literal(value: Any) -> str:
    """A value as TOML has it, near enough for JSON's sake."""
    match value:
        case Path():
            return json.dumps(str(value))
        case tuple():
            return json.dumps([str(one) for one in value])
        case _:
            # Unlike JSON, TOML has no pairs of escapes for what lies beyond 16 bits.
            return json.dumps(value, default=str, ensure_ascii=False)


def table(setting: str, name: str) -> str:
    """The heading of one of a setting's tables."""
    return f"[{setting}.{name if _BARE.fullmatch(name) else literal(name)}]"
