"""llama.cpp's sampler ``infill``: end when that is likely, choose among likely tokens, and never guess."""

import mlx.core as mx
import numpy as np
import pytest

from jackfield.engine.infill import InfillProcessor

END, PAD = 0, 1
TEXTS = {END: "<end>", PAD: "<pad>", 2: "hel", 3: "hell", 4: "hello", 5: "dummy", 6: "x", 7: ""}


def sampler(top_k: int = 0, top_p: float = 1.0) -> InfillProcessor:
    return InfillProcessor(frozenset({END, PAD}), lambda token: TEXTS.get(token, f"t{token}"), top_k, top_p)


@pytest.mark.parametrize(
    ("candidates", "left"),
    [
        # The example in llama.h.
        ({2: 0.5, 3: 0.2, 4: 0.1, 5: 0.1, 6: 0.1}, {2}),
        ({4: 0.3, 2: 0.25, 3: 0.1, 5: 0.35}, {4, 5}),
        ({5: 0.5, 6: 0.5}, {5, 6}),
        ({5: 0.6, 6: 0.25, 9: 0.15}, {5}),
        ({5: 0.97, END: 0.03}, {5, END}),
        ({5: 0.95, END: 0.03, PAD: 0.02}, {5, END, PAD}),
        ({5: 0.8, END: 0.15, PAD: 0.05}, {END, PAD}),
        (dict.fromkeys(range(10, 20), 0.1), {END}),
        ({**dict.fromkeys(range(10, 20), 0.0999), PAD: 0.001}, {PAD}),
        ({END: 1.0}, {END}),
        ({7: 0.6, 5: 0.4}, {7, 5}),
    ],
    ids=[
        "alike",
        "alike, the longer one more likely",
        "two",
        "one of three",
        "an unlikely end stays",
        "two unlikely ends stay",
        "a likely end",
        "nothing is likely",
        "nothing is likely but an end",
        "an end alone",
        "a row without text",
    ],
)
def test_what_is_left(candidates: dict[int, float], left: set[int]) -> None:
    assert sampler().choose(candidates).keys() == left


def test_tokens_that_begin_alike_stand_together() -> None:
    assert sampler().choose({2: 0.5, 3: 0.2, 4: 0.1, 5: 0.2}) == {2: pytest.approx(0.8)}
    assert sampler().choose({4: 0.3, 2: 0.2, 3: 0.1, 5: 0.4}) == {4: pytest.approx(0.6), 5: 0.4}


def logits(likely: dict[int, float]) -> mx.array:
    row = np.full(32, -30.0, np.float32)
    for token, weight in likely.items():
        row[token] = np.log(weight)
    return mx.array(row)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_only_what_is_left_can_be_sampled(dtype: mx.Dtype) -> None:
    row = np.array(sampler()((1, 2), logits({4: 0.45, 5: 0.45, 6: 0.1}).astype(dtype)))
    assert set(np.flatnonzero(row > np.log(1e-6))) == {4, 5}
    assert set(np.flatnonzero(np.isfinite(row))) == {END, PAD, 4, 5}
    assert np.exp(row[[4, 5]]) == pytest.approx([0.45, 0.45], abs=0.01)


@pytest.mark.parametrize(("cut", "left"), [({}, {5, 6}), ({"top_k": 1}, {5}), ({"top_p": 0.5}, {5})])
def test_top_k_and_top_p_come_first(cut: dict[str, float], left: set[int]) -> None:
    row = np.array(sampler(**cut)((), logits({5: 0.55, 6: 0.45})))
    assert set(np.flatnonzero(row > np.log(1e-6))) == left


def test_a_flat_distribution_is_not_looked_at_whole() -> None:
    seen: set[int] = set()
    processor = InfillProcessor(frozenset({9}), lambda token: str(seen.add(token) or token))
    processor((), mx.where(mx.arange(50_000) == 9, -mx.inf, 0.0))
    assert len(seen) == 40
