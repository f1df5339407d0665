"""Images that have been read, and their places in a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from jackfield.engine.request import PromptImage
from jackfield.errors import InvalidRequestError
from jackfield.models.tokenizer import Tokenizer
from jackfield.protocol.content import ImageUrl
from jackfield.vision.processor import ImageProcessor

Key = tuple[str, str]
"""An image's URL and the detail that is asked for."""


def key_of(image: ImageUrl) -> Key:
    """What an image is known by within a request."""
    return image.url, image.detail or "auto"


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as the model wants it."""

    pixels: NDArray[np.uint8]
    """[height, width, 3]"""
    tokens: int

    def digest(self) -> bytes:
        """32 bytes that stand for size and pixels."""
        return blake2b(self.pixels.data, digest_size=32, person=b"%dx%d" % self.pixels.shape[:2]).digest()


@dataclass(frozen=True, slots=True)
class Pictures:
    """All images of a request."""

    processor: ImageProcessor
    read: Mapping[Key, Picture]

    def place(
        self, text: str, images: Sequence[ImageUrl], tokenizer: Tokenizer
    ) -> tuple[list[int], tuple[PromptImage, ...]]:
        """Tokens of a prompt in which a placeholder stands for each of the images, and where they are.

        Raises:
            InvalidRequestError: the placeholders are not as many, or an image has not been read.
        """
        try:
            pictures = [self.read[key_of(image)] for image in images]
        except KeyError:
            raise InvalidRequestError(
                "The conversation has an image that was not in the request.",
                param="messages",
                suggestions=("Send it in 'messages': a plugin that shortens conversations may not add any.",),
            ) from None
        tokens = tokenizer.encode(self._expanded(text, pictures), special=False)
        return tokens, tuple(self._found(tokens, pictures, tokenizer))

    def _expanded(self, text: str, pictures: Sequence[Picture]) -> str:
        placeholder = self.processor.placeholder
        try:
            return self.processor.expand(text, [picture.tokens for picture in pictures])
        except ValueError:
            raise InvalidRequestError(
                f"The prompt has {text.count(placeholder)} times {placeholder!r}, which stands for an image, "
                f"for {len(pictures)} images.",
                param="messages",
                code="invalid_value",
                suggestions=(
                    f"Do not write {placeholder!r} in texts beside images.",
                    "Send images in messages of the user: the model's chat template may leave out others.",
                ),
            ) from None

    def _found(self, tokens: list[int], pictures: Sequence[Picture], tokenizer: Tokenizer) -> list[PromptImage]:
        """Where the pictures are: each is as many of the placeholder's tokens as it has."""
        (token,) = tokenizer.encode(self.processor.placeholder, special=False)
        found, position = [], 0
        for picture in pictures:
            position = tokens.index(token, position)
            found.append(PromptImage(position, picture.tokens, picture.pixels, picture.digest()))
            position += picture.tokens
        return found
