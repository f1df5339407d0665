"""Nobody's turn but time's: nothing is wrong with the request, and it may succeed later."""

from typing import Any, ClassVar

from jackfield.errors.base import Category, JackfieldError


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


class ShuttingDownError(UnavailableError):
    """The server ends, perhaps to begin anew."""

    code = "shutting_down"

    def __init__(self, message: str = "The server is shutting down.") -> None:
        super().__init__(
            message,
            retry_after=10,
            suggestions=("Try again after the seconds in Retry-After, when it may be back.",),
        )


class NoBackendError(UnavailableError):
    """Nobody in the model's route can answer now."""

    code = "no_backend"


class InUseError(JackfieldError):
    """A model has to stay in memory."""

    status = 409
    type = "invalid_request_error"
    code = "model_in_use"
    category: ClassVar[Category] = "busy"

    def __init__(self, model: str, reason: str, advice: str = "Try again when nobody needs it.") -> None:
        super().__init__(f"{model} stays in memory: {reason}.", param="model", suggestions=(advice,))


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
