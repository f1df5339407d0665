"""How a model wants its images: their size, and the tokens that they stand for in the prompt.

This is mlx-lm's processor without its arrays, so it may be used on any thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx import nn
    from mlx_lm.processors.muse_spark import Processor

MODEL_TYPES = ("muse_spark",)
"""The models of mlx-lm that read images; from all others it takes the vision tower away."""

LOW_DETAIL = 512 * 512
"""Pixels of an image with ``"detail": "low"``: what OpenAI makes of it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What becomes of an image."""

    width: int
    height: int
    tokens: int


class ImageProcessor:
    """One model's.

    Args:
        own: mlx-lm's.
        max_tokens: of an image, if that is fewer than the model takes.
    """

    def __init__(self, own: "Processor", max_tokens: int | None = None) -> None:
        self.own = own
        self.max_tokens = min(own.max_num_image_tokens, max_tokens or own.max_num_image_tokens)

    @property
    def placeholder(self) -> str:
        """What the chat template writes for an image, and then for each of its tokens; a token of its own."""
        return self.own.image_token

    def fit(self, width: int, height: int, *, low: bool = False) -> Fit:
        """The size to which an image is scaled; with ``low``, no more than a thumbnail."""
        from mlx_lm.processors.muse_spark import _find_resize_target  # noqa: PLC0415 - imports MLX

        side = self.own.token_patch
        most = min(self.max_tokens, LOW_DETAIL // side**2) if low else self.max_tokens
        bounds = {"patch_h": side, "patch_w": side, "min_tokens": self.own.min_num_image_tokens, "max_tokens": most}
        (high, wide), (rows, columns) = _find_resize_target(height, width, **bounds)
        return Fit(wide, high, rows * columns)

    def expand(self, text: str, counts: Sequence[int]) -> str:
        """A prompt with each image's placeholder repeated for all of its tokens, and its begin and end marked.

        Raises:
            ValueError: there are not as many placeholders as images.
        """
        from mlx_lm.processors.muse_spark import image_tokens  # noqa: PLC0415

        first, *others = text.split(self.placeholder)
        pairs = zip(counts, others, strict=True)
        return "".join([first, *(image_tokens(count) + part for count, part in pairs)])


def processor_for(model: "nn.Module", config: dict[str, Any]) -> "Processor | None":
    """mlx-lm's processor for a model's images; None if it reads none. On the engine's thread."""
    from mlx_lm.processors import load_processor  # noqa: PLC0415

    return load_processor(model, config)
