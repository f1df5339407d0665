"""The server's own messages, which go through the standard library's ``logging``, in the same journal."""

import logging
import traceback

from jackfield_logging.journal import Journal, Line

LOGGERS = ("jackfield", "uvicorn.error")
FRAMES = 12
"""Of a traceback, the innermost."""


class ServerLog(logging.Handler):
    """Takes the server's messages until it is detached.

    Args:
        journal: where they go.
        instead: whether they go there alone, since it writes to the standard error as they do otherwise.
    """

    def __init__(self, journal: Journal, *, instead: bool) -> None:
        super().__init__()
        self._journal = journal
        self._propagated = {logging.getLogger(name): logging.getLogger(name).propagate for name in LOGGERS}
        for logger in self._propagated:
            logger.addHandler(self)
            logger.propagate = logger.propagate and not instead

    def detach(self) -> None:
        """Leave the loggers as they were."""
        for logger, propagate in self._propagated.items():
            logger.removeHandler(self)
            logger.propagate = propagate
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        try:
            if not _is_event(record):
                self._journal.write(_line(record))
        except Exception:
            self.handleError(record)


def _is_event(record: logging.LogRecord) -> bool:
    """Whether it tells an event of the server, which the hook ``on_event`` has brought already."""
    return record.name == "jackfield.events" and not record.exc_info


def _line(record: logging.LogRecord) -> Line:
    fields = {"logger": record.name, "message": record.getMessage()}
    if record.exc_info and record.exc_info[1]:
        fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1], limit=-FRAMES))
    request_id = getattr(record, "request_id", None)  # from ``extra``
    return Line(record.levelno, "server_log", fields, request_id, record.created)
