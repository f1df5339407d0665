"""Every error a user can meet: one hierarchy, and for HTTP one envelope.

The envelope is OpenAI's (``message``, ``type``, ``param``, ``code``) plus ``suggestions``: what to do about it.
"""

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


class InvalidRequestError(JackfieldError):
    """The client sent something that cannot be honoured."""

    status = 400
    type = "invalid_request_error"
    category: ClassVar[Category] = "request"
    remedies: ClassVar[tuple[str, ...]] = ("Correct what 'param' names; docs/api.md lists what each field may hold.",)


class UnsupportedError(InvalidRequestError):
    """A valid field of the official API that this server or this model cannot honour."""

    code = "unsupported_value"


class ContextLengthExceededError(InvalidRequestError):
    """The prompt does not fit in the model's context."""

    code = "context_length_exceeded"

    def __init__(self, *, context_length: int, prompt_tokens: int, param: str = "messages") -> None:
        self.context_length = context_length
        self.prompt_tokens = prompt_tokens
        # A text that is much too long is not counted to its end.
        count = f"{prompt_tokens} tokens{' or more' if prompt_tokens > 2 * context_length else ''}"
        # Coding assistants recognise an overflow by this wording, and compact the conversation or stop cleanly.
        super().__init__(
            f"This model's maximum context length is {context_length} tokens. However, your {param} resulted in "
            f"{count}. Please reduce the length of the {param}.",
            param=param,
            suggestions=(
                f"Shorten the {param} by at least {prompt_tokens - context_length + 1} tokens.",
                "Serve a model with a longer context.",
            ),
        )


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


class NotFoundError(JackfieldError):
    """No such resource."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"
    category: ClassVar[Category] = "not_found"
    remedies: ClassVar[tuple[str, ...]] = ("See openapi.yaml for what there is.",)


class ModelNotFoundError(NotFoundError):
    """The client named a model that is not served here."""

    code = "model_not_found"

    def __init__(self, model: str, available: tuple[str, ...]) -> None:
        named = model if len(model) <= 100 else f"{model[:100]}..."
        super().__init__(
            f"The model {named!r} does not exist here.",
            param="model",
            suggestions=(f"Use one of: {', '.join(available)}.", "See GET /v1/models."),
        )


class InUseError(JackfieldError):
    """A model has to stay in memory."""

    status = 409
    type = "invalid_request_error"
    code = "model_in_use"
    category: ClassVar[Category] = "busy"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"{model} stays in memory: {reason}.", param="model", suggestions=("Try again when nobody needs it.",)
        )


class MethodNotAllowedError(JackfieldError):
    """The path exists, but not for this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    category: ClassVar[Category] = "request"
    remedies: ClassVar[tuple[str, ...]] = ("See openapi.yaml for what there is.",)


class ContentEncodingError(JackfieldError):
    """The request's body is compressed, which would let a small one become a huge one."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"
    category: ClassVar[Category] = "request"

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"The request's body has the Content-Encoding {encoding[:100]!r}, which this server does not read.",
            suggestions=("Send the body as it is, without the header Content-Encoding.",),
        )

    @property
    def headers(self) -> dict[str, str]:
        """What could be sent instead (RFC 9110, 15.5.16)."""
        return {"Accept-Encoding": "identity"}


class PayloadTooLargeError(JackfieldError):
    """The request's body is larger than the server reads."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"
    category: ClassVar[Category] = "request"
    remedies: ClassVar[tuple[str, ...]] = ("Send less.",)


class UnavailableError(JackfieldError):
    """The server cannot answer now; the same request may succeed later."""

    status = 503
    code = "unavailable"
    category: ClassVar[Category] = "busy"
    remedies: ClassVar[tuple[str, ...]] = ("Try again after the seconds in Retry-After.",)

    def __init__(self, message: str, *, retry_after: int = 1, **keywords: Any) -> None:
        super().__init__(message, **keywords)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds: without it some clients hammer."""
        return {"Retry-After": str(self.retry_after)}


class QueueFullError(UnavailableError):
    """More requests wait than the server is set to queue."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, length: int, capacity: int | None = None) -> None:
        places = "" if capacity is None else f", max_batch and max_queue together {capacity}"
        super().__init__(
            f"The queue is full: {length} requests are being answered or wait.",
            retry_after=5,
            suggestions=(
                "Try again after the seconds in Retry-After.",
                f"Send fewer at the same time, or raise the setting max_queue{places}.",
            ),
        )


class ShuttingDownError(UnavailableError):
    """The server ends, perhaps to begin anew."""

    code = "shutting_down"

    def __init__(self, message: str = "The server is shutting down.") -> None:
        super().__init__(
            message,
            retry_after=10,
            suggestions=("Try again after the seconds in Retry-After, when it may be back.",),
        )


class ElsewhereError(InvalidRequestError):
    """The model is not here: other servers answer for it, and not everything can be asked of them."""

    code = "unsupported_value"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model!r} is answered by other servers, which this cannot be asked of.",
            param="model",
            suggestions=("Ask that server itself.", "Name a model that is served here, see GET /v1/models."),
        )


class NoBackendError(UnavailableError):
    """Nobody in the model's route can answer now."""

    code = "no_backend"


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


class RateLimitError(UnavailableError):
    """A key was used for more than it may be."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, name: str, what: str, limit: int, retry_after: int) -> None:
        super().__init__(
            f"Rate limit reached for the key {name!r}: {limit} {what} per minute.",
            retry_after=retry_after,
            suggestions=("Try again after the seconds in Retry-After.", "Ask for a key with a higher limit."),
        )


class EngineError(UnavailableError):
    """The engine failed while it worked on the request."""

    code = "engine_error"
    category: ClassVar[Category] = "engine"
    remedies: ClassVar[tuple[str, ...]] = (
        "Send it again: the engine is started anew by itself.",
        "If it happens again, look at the server's log.",
    )


class MemoryPressureError(UnavailableError):
    """The machine's memory is short at the moment; nothing is wrong with the request."""

    code = "memory_pressure"
    category: ClassVar[Category] = "memory"

    def __init__(
        self,
        message: str = "The server is short of memory at the moment.",
        *,
        retry_after: int = 5,
        lacking: int | None = None,
    ) -> None:
        missing = "" if lacking is None else f" {lacking / 1e9:.1f} GB are missing."
        super().__init__(
            message + missing,
            retry_after=retry_after,
            suggestions=(
                "Try again after the seconds in Retry-After: the server goes on by itself.",
                "Close other programs, or let a model leave: POST /v1/models/unload.",
                "Set max_batch or context_length lower, or kv_bits = 8, so that it need not come to this.",
            ),
        )


class DeadlineExceededError(JackfieldError):
    """The client's own time limit passed before the answer began."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    category: ClassVar[Category] = "time"

    def __init__(self) -> None:
        super().__init__(
            "The request's time limit passed before its answer began.",
            param="timeout",
            suggestions=("Allow more time in 'timeout'.", "Try again when fewer requests wait."),
        )

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's SDKs would send it again at once, to wait as long as before."""
        return {"x-should-retry": "false"}


class GroupError(JackfieldError):
    """The processes that run a model together are not all there, or do not fit together."""

    code = "group_error"
    category: ClassVar[Category] = "model"
    remedies: ClassVar[tuple[str, ...]] = (
        "See that all processes of the group run, with the same versions and settings: docs/scale.md.",
        "Look at the other processes' logs.",
    )


class GroupLostError(GroupError):
    """The group has not come together, or has fallen apart; it may come together again."""

    code = "group_lost"
    exit_status: ClassVar[int] = 75
    """EX_TEMPFAIL of BSD's sysexits.h."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            suggestions=(
                "Wait: all processes begin anew by themselves.",
                "If it goes on, see that all of them run and that their machines reach each other.",
            ),
        )


class ModelLoadError(JackfieldError):
    """A model cannot be served; the message says why and the suggestions what to do."""

    code = "model_load_error"
    category: ClassVar[Category] = "model"
    remedies: ClassVar[tuple[str, ...]] = ("See what jackfield doctor MODEL says.",)


class TemplateLimitError(JackfieldError):
    """A model's chat template takes more time or memory than it may."""

    code = "template_limit"
    category: ClassVar[Category] = "model"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The model's chat template takes more than {seconds:g} seconds, or too much memory for this conversation.",
            param="messages",
            suggestions=(
                "Send a shorter conversation.",
                "Look at the model's chat_template.",
            ),
        )


class ConfigurationError(JackfieldError):
    """A setting is wrong."""

    code = "configuration_error"
    category: ClassVar[Category] = "configuration"
    remedies: ClassVar[tuple[str, ...]] = ("See what jackfield config show says.",)
