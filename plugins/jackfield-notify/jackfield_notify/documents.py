"""JSON that clients send: read, validated, and refused in words that say what to do."""

import difflib
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from jackfield.errors import InvalidRequestError, PayloadTooLargeError

MOST_BYTES = 256 << 10

Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, kind: type[Model]) -> Model:
    """A request's body.

    Raises:
        InvalidRequestError: it is not what ``kind`` says.
        PayloadTooLargeError: it is longer than `MOST_BYTES`.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise PayloadTooLargeError(
                f"The request's body is larger than {MOST_BYTES} bytes.", suggestions=("Send less.",)
            )
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        raise refusal(error, kind) from None


def refusal(error: ValidationError, kind: type[BaseModel]) -> InvalidRequestError:
    """What is wrong with it first; never says what was sent, which may be a secret."""
    problem = cast("dict[str, Any]", error.errors(include_url=False, include_input=False)[0])
    param = ".".join(map(str, problem["loc"])) or None
    if problem["type"] == "json_invalid":
        return InvalidRequestError(
            f"The request body is not valid JSON: {problem['ctx']['error']}.",
            code="invalid_json",
            suggestions=("Use a JSON library to write it.",),
        )
    if problem["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"Unknown parameter: '{param}'.",
            param=param,
            code="unknown_parameter",
            suggestions=(_nearest(problem["loc"], kind),),
        )
    if problem["type"] == "missing":
        return InvalidRequestError(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
            suggestions=(f"Send '{param}'.",),
        )
    message = problem["msg"].removeprefix("Value error, ")
    return InvalidRequestError(
        f"Invalid value for '{param}': {message}." if param else f"Invalid request: {message}.",
        param=param,
        code="invalid_value",
        suggestions=("Correct it; the plugin's README lists all settings.",),
    )


def _nearest(location: tuple[str | int, ...], kind: type[BaseModel]) -> str:
    known = list(kind.model_fields) if len(location) == 1 else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"Did you mean '{near[0]}'?" if near else "Leave it out."
