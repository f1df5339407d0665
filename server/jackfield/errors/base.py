"""What every error is."""

from typing import Any, ClassVar, Literal

Category = Literal[
    "request",
    "access",
    "not_found",
    "busy",
    "memory",
    "time",
    "engine",
    "upstream",
    "model",
    "configuration",
    "internal",
]
"""Whose turn it is: the client's (``request``, ``access``, ``not_found``), nobody's but time's (``busy``, ``time``), or
that of whoever runs the server."""


class JackfieldError(Exception):
    """An error with a message for the user and what to do about it; anything else that is raised is a bug."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    category: ClassVar[Category] = "internal"
    remedies: ClassVar[tuple[str, ...]] = ("Look at the server's log.", "If it happens again, report it as a bug.")
    """What to do where nothing better is known."""
    exit_status: ClassVar[int] = 1
    """Of a command that it ends."""

    def __init__(
        self, message: str, *, param: str | None = None, suggestions: tuple[str, ...] = (), code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.suggestions = suggestions or self.remedies
        self.error_code = code or self.code

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {}

    def envelope(self) -> dict[str, Any]:
        """The body of the HTTP answer, in OpenAI's shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.error_code,
                "category": self.category,
                "suggestions": list(self.suggestions),
            }
        }


def unexpected() -> JackfieldError:
    """What is told of anything else; the log has the rest."""
    return JackfieldError(
        "The server failed unexpectedly.", code="internal_error", suggestions=("Look at the server's log.",)
    )
