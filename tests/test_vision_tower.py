"""What encoding an image takes, and how large images may be because of that."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from jackfield.engine.images import ImageEncoder
from jackfield.engine.request import PromptImage
from jackfield.models.architecture import from_config
from jackfield.models.plan import IMAGE_SHARE, plan_architecture
from jackfield.models.vision_tower import VisionTower, tower_of
from model_fixtures import tiny_config
from vision_models import config, network, picture, processor, prompt_image

TOWER = VisionTower(heads=16, hidden=1536, inner=8960, patch_values=1176, token_patches=4, max_tokens=4096)
"""Muse Spark's own."""
GB = 10**9


def of_width(heads: int, hidden: int, inner: int) -> dict[str, Any]:
    settings = config(96, 7)
    own = {"num_attention_heads": heads, "hidden_size": hidden, "intermediate_size": inner}
    return settings | {"vision_config": settings["vision_config"] | own}


def peak(encoder: ImageEncoder, image: PromptImage) -> int:
    """Bytes that encoding takes: more than it needs where a busy machine gives back late what it does not need."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    encoder.encode(image)
    return mx.get_peak_memory() - before


@pytest.mark.parametrize(("heads", "hidden", "inner"), [(2, 32, 64), (4, 128, 768), (2, 128, 2048)])
def test_encoding_takes_no_more_than_the_tower_says(heads: int, hidden: int, inner: int) -> None:
    settings = of_width(heads, hidden, inner)
    model = network(settings)
    tower, encoder = tower_of(model, settings), ImageEncoder(model, processor(settings))
    assert tower is not None
    for side in (4, 10, 20):
        image = prompt_image(1, picture(1, side, side))
        assert min(peak(encoder, image) for _ in range(3)) <= tower.nbytes(image.count)


def test_the_largest_image_is_the_last_that_fits() -> None:
    for nbytes in (GB, 5 * GB, 20 * GB):
        tokens = TOWER.affordable(nbytes)
        assert TOWER.nbytes(tokens) <= nbytes < TOWER.nbytes(tokens + 1)
    assert TOWER.affordable(0) == 1
    assert TOWER.affordable(1 << 50) == 4096


def test_the_plan_keeps_memory_for_the_largest_image() -> None:
    with_eyes = from_config(config(96, 7))
    assert with_eyes.vision is not None
    with_eyes = replace(with_eyes, vision=replace(TOWER, max_tokens=4096))
    plan = plan_architecture(with_eyes, "cpu", 32 * GB)
    assert plan.image_tokens == TOWER.affordable(32 * GB // IMAGE_SHARE) < 4096
    assert plan.workspace == TOWER.nbytes(plan.image_tokens)
    assert f"Images: of up to {plan.image_tokens:,} tokens each" in "\n".join(plan.lines())
    assert plan.as_json()["image_tokens"] == plan.image_tokens
    chosen = plan_architecture(with_eyes, "cpu", 32 * GB, image_tokens=100)
    assert (chosen.image_tokens, plan_architecture(with_eyes, "cpu", 32 * GB, image_tokens=9999).image_tokens) == (
        100,
        4096,
    )
    assert chosen.workspace < plan.workspace
    assert plan_architecture(with_eyes, "cpu", 32 * GB, memory_limit=8 * GB).image_tokens < plan.image_tokens


def test_a_model_without_eyes_plans_for_none() -> None:
    plan = plan_architecture(from_config(tiny_config("qwen2", 96)), "cpu", 32 * GB, image_tokens=100)
    assert plan.image_tokens == 0
    assert "Images" not in "\n".join(plan.lines())
    blind = config(96, 7) | {"vision_config": None}
    assert from_config(blind).vision is None
