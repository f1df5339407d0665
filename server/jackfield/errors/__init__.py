"""Every error a user can meet: one hierarchy, and for HTTP one envelope.

A module for each of those whose turn it is. The envelope is OpenAI's (``message``, ``type``, ``param``, ``code``) plus
``suggestions``: what to do about it.
"""

from jackfield.errors.access import (
    ExpiredKeyError,
    ForbiddenError,
    ForeignOriginError,
    UnauthorizedError,
    UnknownHostError,
)
from jackfield.errors.base import Category, JackfieldError, unexpected
from jackfield.errors.operation import (
    ConfigurationError,
    GroupError,
    GroupLostError,
    ModelLoadError,
    TemplateLimitError,
)
from jackfield.errors.request import (
    ContentEncodingError,
    ContextLengthExceededError,
    ElsewhereError,
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    PayloadTooLargeError,
    UnsupportedError,
)
from jackfield.errors.upstream import (
    LoopError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamLimitError,
    UpstreamTimeoutError,
)
from jackfield.errors.waiting import (
    DeadlineExceededError,
    EngineError,
    InUseError,
    MemoryPressureError,
    NoBackendError,
    QueueFullError,
    RateLimitError,
    ShuttingDownError,
    UnavailableError,
)

__all__ = [
    "Category",
    "ConfigurationError",
    "ContentEncodingError",
    "ContextLengthExceededError",
    "DeadlineExceededError",
    "ElsewhereError",
    "EngineError",
    "ExpiredKeyError",
    "ForbiddenError",
    "ForeignOriginError",
    "GroupError",
    "GroupLostError",
    "InUseError",
    "InvalidRequestError",
    "JackfieldError",
    "LoopError",
    "MemoryPressureError",
    "MethodNotAllowedError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NoBackendError",
    "NotFoundError",
    "PayloadTooLargeError",
    "QueueFullError",
    "RateLimitError",
    "ShuttingDownError",
    "TemplateLimitError",
    "UnauthorizedError",
    "UnavailableError",
    "UnknownHostError",
    "UnsupportedError",
    "UpstreamBusyError",
    "UpstreamError",
    "UpstreamLimitError",
    "UpstreamTimeoutError",
    "unexpected",
]
