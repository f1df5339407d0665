"""What is wrong with an image."""

from jackfield.errors import InvalidRequestError


class ImageError(Exception):
    """An image that cannot be read. ``code`` is one of those that OpenAI has for it.

    Args:
        code: such as ``image_too_large``.
        reason: goes on after "The image ", as in "is larger than 3 pixels".
        suggestion: what to do.
    """

    def __init__(self, code: str, reason: str, suggestion: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.suggestion = suggestion

    def at(self, path: str) -> InvalidRequestError:
        """The same for the client, who sent the image at ``path``."""
        return InvalidRequestError(
            f"The image {path} {self.reason}.", param=path, code=self.code, suggestions=(self.suggestion,)
        )
