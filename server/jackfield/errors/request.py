"""The client's turn: what it asks for cannot be done, here or by anybody."""

from typing import ClassVar

from jackfield.errors.base import Category, JackfieldError


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


class ElsewhereError(InvalidRequestError):
    """The model is not here: other servers answer for it, and not everything can be asked of them."""

    code = "unsupported_value"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model!r} is answered by other servers, which this cannot be asked of.",
            param="model",
            suggestions=("Ask that server itself.", "Name a model that is served here, see GET /v1/models."),
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
