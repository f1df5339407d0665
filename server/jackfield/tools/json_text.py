"""Where a JSON value ends in text that comes in pieces."""


class JsonScanner:
    """Follows one object or array. It knows brackets and strings, and no more.

    Args:
        depth: how many brackets have been opened already.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = False
        self._escaped = False

    def feed(self, text: str, start: int = 0, until: int = 0) -> int:
        """Read ``text`` from ``start`` on; the position behind the bracket that closes all but ``until``, or -1."""
        for position in range(start, len(text)):
            character = text[position]
            if self._quoted:
                self._read_quoted(character)
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= until:
                    return position + 1
        return -1

    def _read_quoted(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._quoted = False
