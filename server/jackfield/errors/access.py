"""The client's turn, too: it has no business here, or does not show that it has."""

from typing import ClassVar

from jackfield.errors.base import Category, JackfieldError


class UnauthorizedError(JackfieldError):
    """Nobody knows who sends the request."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    category: ClassVar[Category] = "access"

    def __init__(self) -> None:
        super().__init__(
            "The request's API key is missing or not known here.",
            suggestions=("Send 'Authorization: Bearer KEY', or 'x-api-key: KEY', with a key of this server.",),
        )

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP wants to be told of the way in."""
        return {"WWW-Authenticate": "Bearer"}


class ExpiredKeyError(UnauthorizedError):
    """The key was good, until some time ago."""

    code = "expired_api_key"

    def __init__(self, name: str) -> None:
        JackfieldError.__init__(
            self, f"The API key {name!r} has expired.", suggestions=("Make a new one: jackfield keys create.",)
        )


class ForbiddenError(JackfieldError):
    """The sender is known, but may not do this."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"
    category: ClassVar[Category] = "access"

    def __init__(self, path: str, scope: str) -> None:
        super().__init__(f"This key is not for {path}.", suggestions=(f"Use a key with the scope {scope!r}.",))


class UnknownHostError(JackfieldError):
    """The server was asked by a name that somebody else may have given it."""

    status = 421
    type = "invalid_request_error"
    code = "unknown_host"
    category: ClassVar[Category] = "access"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"This server does not know that it is called {name[:100]!r}.",
            suggestions=(
                "Ask it by its address, or as localhost.",
                "If the name is right, put it into the setting allowed_hosts.",
                "With a key (jackfield keys create) any name will do.",
            ),
        )


class ForeignOriginError(JackfieldError):
    """A page of another site sends the request."""

    status = 403
    type = "invalid_request_error"
    code = "foreign_origin"
    category: ClassVar[Category] = "access"

    def __init__(self, origin: str | None = None) -> None:
        pages = "other sites" if origin is None else repr(origin[:100])
        super().__init__(
            f"Pages of {pages} may not send requests to this server.",
            suggestions=(
                "If they may, put their origin into the setting cors_origins"
                + (", and let them ask with fetch()." if origin is None else "."),
            ),
        )
