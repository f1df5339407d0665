"""The turn of those who run other servers."""

from typing import ClassVar

from jackfield.errors.base import Category, JackfieldError
from jackfield.errors.waiting import UnavailableError


class UpstreamError(JackfieldError):
    """Another server that was to answer failed, or what it said makes no sense."""

    status = 502
    code = "upstream_error"
    category: ClassVar[Category] = "upstream"
    remedies: ClassVar[tuple[str, ...]] = ("See whether that server runs, and what its log says.",)


class UpstreamTimeoutError(UpstreamError):
    """Another server took too long."""

    status = 504
    code = "upstream_timeout"


class UpstreamBusyError(UnavailableError):
    """Another server has no room at the moment, or is left alone after it has failed."""

    code = "upstream_unavailable"
    category: ClassVar[Category] = "upstream"


class UpstreamLimitError(UpstreamBusyError):
    """Another server lets us ask no more often."""

    status = 429
    type = "rate_limit_error"
    code = "upstream_rate_limit"


class LoopError(JackfieldError):
    """Servers ask each other in a circle."""

    status = 508
    code = "upstream_loop"
    category: ClassVar[Category] = "upstream"

    def __init__(self) -> None:
        super().__init__(
            "The request has come back to a server that has passed it on.",
            suggestions=("Let the routes of two servers not lead to each other for the same model.",),
        )
