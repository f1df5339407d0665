"""What of a source file says what is in it: the lines that declare something, without the bodies.

Python is parsed. Other languages are read line by line: a line counts when it begins like a declaration, so a body
that looks like one is kept, and a declaration in an unusual form is not.
"""

import ast
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

_PYTHON = frozenset({".py", ".pyi", ".python"})
_OTHERS = """
js jsx mjs cjs ts tsx mts cts go rs java kt kts scala swift c h cc cpp cxx hh hpp cs php rb lua dart ex exs zig
javascript typescript rust kotlin golang csharp ruby elixir
"""
_SUFFIXES = _PYTHON | {f".{name}" for name in _OTHERS.split()}
_LARGEST = 500_000
"""Characters of a file that is parsed."""

_NUMBERED = re.compile(r"\s*\d+(?:\t|:| ?[|│→]) ?")
_DECLARATION = re.compile(
    r"(?:import|from|use|using|package|include|require|module|namespace)\s|@\w|#\[|#include"
    r"|(?:(?:export|default|public|private|protected|internal|static|abstract|final|async|override|open|sealed|data"
    r"|virtual|inline|extern|unsafe|declare|pub(?:\([\w:]+\))?)\s+)*"
    r"(?:def|class|struct|enum|interface|trait|impl|type|func|fun|fn|function|protocol|extension|object|record|union"
    r"|defmodule|defp|typedef|typealias|macro_rules!)\b"
)
# A method without a keyword, as in Java, C and TypeScript: a name, parameters, and a body that opens on the line.
_METHOD = re.compile(r"(?!(?:if|for|while|switch|catch|else|do|try|return|with|match)\b)[\w<>\[\],.*&:~ ]+\([^;]*\{$")
_BINDING = re.compile(r"(?:export )?(?:const|let|var|val|static) \w")
_LONGEST_DECLARATION = 300
"""Characters; longer lines are no declarations that anybody wrote."""

_parsing = threading.Lock()  # warnings.catch_warnings is not for two threads at once


def is_code(path: str) -> bool:
    """Whether a file of this name, or a language written as ``.python``, is one that signatures are known of."""
    return _suffix(path) in _SUFFIXES


def signatures(path: str, lines: Sequence[str]) -> set[int]:
    """The lines (from 0) that declare something."""
    bare = _without_numbers(lines)
    if _suffix(path) in _PYTHON and (tree := _parse("".join(bare))):
        return set(_declared(tree))
    return {index for index, line in enumerate(bare) if _declares(line)}


def _declares(line: str) -> bool:
    stripped = line.strip()
    if not stripped or len(stripped) > _LONGEST_DECLARATION:
        return False
    return bool(_DECLARATION.match(stripped) or _METHOD.match(stripped) or _BINDING.match(line))


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower() or path.lower()


def _without_numbers(lines: Sequence[str]) -> Sequence[str]:
    """The lines without the line numbers that tools put before them."""
    matches = [_NUMBERED.match(line) for line in lines]
    filled = sum(1 for line in lines if line.strip())
    if sum(map(bool, matches)) < 0.9 * filled:
        return lines
    return [line[match.end() :] if match else line for line, match in zip(lines, matches, strict=True)]


def _parse(source: str) -> ast.Module | None:
    if len(source) > _LARGEST:
        return None
    with _parsing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _declared(node: ast.Module | ast.ClassDef) -> Iterator[int]:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _signature(statement)
            if isinstance(statement, ast.ClassDef):
                yield from _declared(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign):
            yield statement.lineno - 1


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> range:
    """Decorators, the declaration, and the first line of what explains it."""
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    first = node.body[0]
    end = first.lineno + 1 if ast.get_docstring(node, clean=False) is not None else first.lineno
    return range(start - 1, max(end - 1, node.lineno))
