"""Log lines that nobody can forge: what clients send may hold line breaks and codes that terminals obey."""

import logging
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class OneLine(logging.Formatter):
    """Shows a message on one line; what comes after it, such as where an error was raised, is the server's own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), super().formatMessage(record))
