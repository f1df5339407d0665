"""Calls of families that mlx-lm has parsers for: they read whole calls, and nothing is enforced."""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import regex

from jackfield.tools.offered import Tools
from jackfield.tools.readers import WholeReader, name_and_arguments
from jackfield.tools.scanner import CallScanner, Opening

BORROWED = (
    "function_gemma",
    "gemma4",
    "glm47",
    "kimi_k2",
    "kimi_k3",
    "laguna",
    "longcat",
    "minicpm5",
    "minimax_m2",
    "muse_spark",
    "pythonic",
)
"""Modules of ``mlx_lm.tool_parsers``; those left out have one of their own here."""


def borrowed(name: str, tools: Tools) -> CallScanner:
    """What finds calls as mlx-lm's parser ``name`` reads them."""
    module = import_module(f"mlx_lm.tool_parsers.{name}")
    parse = partial(_parse, module, _described(tools))
    reader = partial(WholeReader, end=module.tool_call_end, parse=parse)
    start = regex.escape(module.tool_call_start)
    return CallScanner(tools, [Opening(start, reader, "", rf"\s*{start}")])


def markers(name: str) -> tuple[str, ...]:
    """What its calls stand between."""
    module = import_module(f"mlx_lm.tool_parsers.{name}")
    return tuple(mark for mark in (module.tool_call_start, module.tool_call_end) if mark)


def _described(tools: Tools) -> list[dict[str, Any]]:
    """The tools as the parsers expect them, to know the types of arguments."""
    return [{"type": "function", "function": {"name": tool.name, "parameters": tool.parameters}} for tool in tools]


def _parse(module: Any, tools: list[dict[str, Any]], text: str) -> Sequence[tuple[object, object]]:
    try:
        found = module.parse_tool_call(text, tools)
    except Exception:  # whatever a parser makes of text that is no call
        return []
    return [name_and_arguments(call) for call in (found if isinstance(found, list) else [found])]
