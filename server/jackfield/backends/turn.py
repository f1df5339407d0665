"""One request's turn at an upstream."""

from jackfield.backends.upstream import Upstream
from jackfield.errors import (
    DeadlineExceededError,
    JackfieldError,
    ShuttingDownError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamLimitError,
)


class Turn:
    """It waits there for a first word, is counted, and the breaker hears how it went. The first end counts.

    Args:
        upstream: who is asked.

    Raises:
        UpstreamBusyError: it is left alone, since it has failed.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._attempt = upstream.begin()
        self._ended = False
        self.waits = True
        """Nothing has been heard yet."""
        upstream.waiting += 1

    def has_spoken(self) -> None:
        """Something has been heard."""
        if self.waits:
            self.waits = False
            self._upstream.waiting -= 1
            self._attempt.spoke()

    def succeeded(self) -> None:
        """It was answered."""
        self._end("answered")
        self._attempt.succeeded()

    def failed(self, error: JackfieldError) -> None:
        """It was not."""
        self._end(error.error_code or error.type)
        if _is_to_blame(error):
            self._attempt.failed()
        elif isinstance(error, DeadlineExceededError | ShuttingDownError):
            self._attempt.abandoned()
        else:
            # It is there, and answers.
            self._attempt.succeeded()

    def abandoned(self) -> None:
        """Nobody waits any more."""
        self._end("cancelled")
        self._attempt.abandoned()

    def _end(self, outcome: str) -> None:
        if not self._ended:
            self._ended = True
            self._upstream.waiting -= self.waits
            self.waits = False
            self._upstream.outcomes[outcome] += 1


def _is_to_blame(error: JackfieldError) -> bool:
    """Whether an error says that the upstream is not well, rather than that it is busy or not set up for this."""
    if isinstance(error, UpstreamLimitError):
        return False
    known = ("upstream_unauthorized", "upstream_model_not_found")
    return isinstance(error, UpstreamError | UpstreamBusyError) and error.error_code not in known
