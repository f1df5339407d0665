"""What it takes to encode an image: the dimensions of a model's vision tower."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx import nn

from jackfield.vision.processor import processor_for


@dataclass(frozen=True, slots=True)
class VisionTower:
    """Of a model that reads images."""

    heads: int
    hidden: int
    inner: int
    """The widest part of a layer."""
    patch_values: int
    """Numbers in a patch of pixels."""
    token_patches: int
    """Patches that become one token."""
    max_tokens: int
    """Tokens of the largest image that the model takes."""

    def nbytes(self, tokens: int) -> int:
        """Activations while an image of so many tokens is encoded, in float32.

        All patches attend to all. MLX has attention without a matrix of scores for some dimensions of heads on a GPU
        alone, so that matrix counts, twice. The other factors cover what was measured for small towers.
        """
        patches = tokens * self.token_patches
        return 4 * patches * (2 * self.heads * patches + 3 * self.inner + 14 * self.hidden + 4 * self.patch_values)

    def affordable(self, nbytes: int) -> int:
        """Tokens of the largest image that so many bytes can encode; one at least."""
        return max(1, bisect_right(range(1, self.max_tokens + 1), nbytes, key=self.nbytes))


def tower_of(model: nn.Module, config: Mapping[str, Any]) -> VisionTower | None:
    """The vision tower of one of mlx-lm's models; None if it reads no images."""
    processor = processor_for(model, dict(config))
    if processor is None:
        return None
    vision: Any = model.args.vision
    return VisionTower(
        heads=vision.num_attention_heads,
        hidden=vision.hidden_size,
        inner=vision.intermediate_size,
        patch_values=vision.num_channels * vision.patch_temporal * vision.patch_size**2,
        token_patches=vision.merge_size**2,
        max_tokens=processor.max_num_image_tokens,
    )
