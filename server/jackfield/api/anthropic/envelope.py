"""Errors in Anthropic's envelope."""

from jackfield.errors import ContextLengthExceededError, JackfieldError
from jackfield.protocol.anthropic.errors import ErrorCode, ErrorType, MessagesErrorDetails, MessagesErrorEnvelope

_TYPES: dict[int, ErrorType] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _type(status: int) -> ErrorType:
    """Anthropic's word for it; below 500 the first one stands for all others (docs.claude.com/en/api/errors)."""
    return _TYPES.get(status, _TYPES[400] if status < 500 else "api_error")


def envelope(error: JackfieldError, request_id: str) -> MessagesErrorEnvelope:
    """What a client of this API is told of an error."""
    details = MessagesErrorDetails(
        type=_type(error.status),
        message=_message(error),
        param=error.param,
        category=error.category,
        suggestions=list(error.suggestions),
        details=ErrorCode(error_code=error.error_code) if error.error_code else None,
    )
    return MessagesErrorEnvelope(error=details, request_id=request_id)


def _message(error: JackfieldError) -> str:
    if isinstance(error, ContextLengthExceededError):
        # By these words Claude Code knows that it has to make the conversation shorter, and by how much.
        return f"prompt is too long: {error.prompt_tokens} tokens > {error.context_length} maximum"
    return error.message
