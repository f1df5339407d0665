"""What in a message may be made shorter: outputs of tools, and files that were shown or written; not what was said."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jackfield.hooks import ChatMessage, JsonObject
from jackfield_compression.content import Place, arguments, texts

_PATH_KEYS = ("path", "file_path", "filePath", "filepath", "file", "filename", "target_file", "uri")
_WHOLE_FILE_KEYS = frozenset({"content", "contents", "text", "file_text", "code"})
_READS = re.compile(r"read|view|open|cat|show", re.IGNORECASE)
_PATH = re.compile(r"[\w./\\@~:+-]*[\w-]\.[A-Za-z]\w{0,7}")
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})(.*)")
_TAG = re.compile(r"""\s*<([A-Za-z][\w-]*)\s[^>]*\b(?:path|file|filename|name)\s*=\s*["']([^"'>]+)["'][^>]*>\s*$""")
_AROUND_A_PATH = " \t\r\n*#:`\"'()"
_LONGEST_MARK = 500
"""Characters of a line that a file begins after."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a message's text."""

    place: Place
    start: int
    end: int
    label: str = ""
    """Equal for versions of the same thing; empty when nothing tells what it is."""
    path: str = ""
    """Of the file that it comes from."""


def passages(message: ChatMessage, call: JsonObject | None) -> Iterator[Passage]:
    """All passages of a message; ``call`` is the one that it answers, if it is a tool's result."""
    for place, text in texts(message):
        if place.kind == "argument":
            yield _argument(place, text, message["tool_calls"][place.index])
        elif message.get("role") == "tool":
            yield Passage(place, 0, len(text), _call_label(place, call), _path(call) if call else "")
        else:
            yield from _files(place, text)


def _argument(place: Place, text: str, call: JsonObject) -> Passage:
    path = _path(call)
    return Passage(place, 0, len(text), _file_label(path) if place.key in _WHOLE_FILE_KEYS else "", path)


def _call_label(place: Place, call: JsonObject | None) -> str:
    if call is None:
        return ""
    given = arguments(call) or (call.get("function") or {}).get("arguments")
    if len(given or ()) == 1 and _path(call) and _READS.search(_name(call)):
        return _file_label(_path(call))
    return f"call {_name(call)} {json.dumps(given, sort_keys=True)} {place.index}"


def _file_label(path: str) -> str:
    return f"file {path.removeprefix('./')}" if path else ""


def _name(call: JsonObject) -> str:
    return str((call.get("function") or {}).get("name"))


def _path(call: JsonObject) -> str:
    given = arguments(call)
    return next((given[key] for key in _PATH_KEYS if isinstance(given.get(key), str)), "")


def _files(place: Place, text: str) -> Iterator[Passage]:
    """Files in a text: inside code fences, and inside tags that name them."""
    opened, start, at, before = None, 0, 0, ""
    for line in text.splitlines(keepends=True):
        if opened is None:
            opened, start = _open(line, before), at + len(line)
        elif opened.closed_by(line):
            if at > start:
                yield Passage(place, start, at, _file_label(opened.path), opened.path or opened.language)
            opened = None
        at += len(line)
        before = line


@dataclass(frozen=True, slots=True)
class _Opened:
    """The line that a file begins after."""

    closing: str
    path: str
    language: str = ""

    def closed_by(self, line: str) -> bool:
        stripped = line.strip()
        if self.closing.startswith("</"):
            return stripped == self.closing
        return stripped.startswith(self.closing) and not stripped.strip(self.closing[0])


def _open(line: str, before: str) -> _Opened | None:
    if len(line) > _LONGEST_MARK:
        return None
    if fence := _FENCE.match(line):
        language = next(iter(fence[2].split()), "")
        path = _PATH.search(fence[2]) or _PATH.fullmatch(before[:_LONGEST_MARK].strip(_AROUND_A_PATH))
        return _Opened(fence[1], path[0] if path else "", f".{language}" if language else "")
    if tag := _TAG.match(line):
        return _Opened(f"</{tag[1]}>", tag[2])
    return None
