"""Errors as HTTP answers, in the envelope that the client's dialect knows."""

from collections.abc import Mapping

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from jackfield.api.anthropic.envelope import envelope
from jackfield.errors import JackfieldError

_ANTHROPIC = frozenset({"/messages", "/messages/count_tokens"})


def speaks_anthropic(connection: HTTPConnection) -> bool:
    """Whether a client expects Anthropic's answers: by what it asks for, or by a header that no other client sends."""
    path: str = connection.scope["path"]
    return path.removeprefix("/v1") in _ANTHROPIC or "anthropic-version" in connection.headers


def refusal(
    error: JackfieldError,
    connection: HTTPConnection,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to a request that fails; ``status`` and ``headers`` instead of the error's own."""
    status = error.status if status is None else status
    headers = error.headers if headers is None else headers
    if not speaks_anthropic(connection):
        return JSONResponse(error.envelope(), status, headers=headers)
    told = envelope(error, connection.state.request_id)
    return Response(told.to_json(), status, headers, media_type="application/json")
