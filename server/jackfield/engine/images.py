"""From an image in a prompt to what the model is given for its tokens."""

from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from jackfield.engine.request import PromptImage


class PixelProcessor(Protocol):
    """One of mlx-lm's image processors (``mlx_lm.processors``)."""

    def preprocess_image(self, image: NDArray[np.uint8]) -> tuple[mx.array, int]:
        """Values [channels, height, width] for the model's encoder, and how many tokens the image has."""


class ImageEncoder:
    """A vision model's own encoder, as mlx-lm's classes have it: ``encode_image`` and ``embed_inputs``.

    Args:
        model: one that also takes ``input_embeddings`` when it is called.
        processor: the model's.
    """

    def __init__(self, model: nn.Module, processor: PixelProcessor) -> None:
        self._model: Any = model
        self._processor = processor
        # Shapes and types are known without evaluating anything.
        text: mx.array = self._model.embed_inputs(mx.array([[0]]))
        self._dtype = text.dtype
        self.bytes_per_token = int(text.shape[-1] * text.itemsize)

    def encode(self, image: PromptImage) -> mx.array:
        """Embeddings of an image, [tokens, hidden], in the type of those of text; returns when they are there.

        Raises:
            ValueError: they are not as many as the image has tokens.
        """
        values, _ = self._processor.preprocess_image(image.pixels)
        embeddings: mx.array = self._model.encode_image(values).astype(self._dtype)
        if embeddings.shape[0] != image.count:
            raise ValueError(f"an image of {image.count} tokens became {embeddings.shape[0]} embeddings")
        mx.eval(embeddings)
        # As after a slice of a prompt: nothing else needs buffers of these sizes.
        mx.clear_cache()
        return embeddings
