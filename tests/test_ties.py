"""What the tests under load take for the same answer: two tokens that are equally likely, but for rounding."""

from typing import Any

import numpy as np
import pytest

from jackfield.engine.request import SamplingParameters
from ties import candidates


def chosen(probabilities: list[float], tolerance: float = 1e-3, **fields: Any) -> list[int]:
    return candidates(np.log(probabilities), SamplingParameters(**fields), 0, tolerance).tolist()


def test_a_greedy_tie_is_two_logits_as_close_as_rounding():
    assert chosen([0.2, 0.4, 0.4 * np.exp(-0.0019)], temperature=0) == [1, 2]
    assert chosen([0.2, 0.4, 0.4 * np.exp(-0.0021)], temperature=0) == [1]


def test_a_draw_is_a_tie_when_it_lies_on_the_edge_of_two_tokens(monkeypatch):
    for draw, expected in [(0.1, [0]), (0.2999, [0, 1]), (0.3001, [0, 1]), (0.31, [1]), (0.69, [1]), (0.9, [2])]:
        monkeypatch.setattr("ties.uniform", lambda *_, draw=draw: draw)
        assert chosen([0.3, 0.4, 0.3]) == expected


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.65}, {"min_p": 0.9}])
def test_what_is_cut_for_certain_is_never_chosen(monkeypatch, cut):
    for draw, expected in [(0.0, 0), (0.4, 0), (0.6, 2), (0.9999, 2)]:
        monkeypatch.setattr("ties.uniform", lambda *_, draw=draw: draw)
        assert chosen([0.35, 0.31, 0.34], **cut) == [expected]


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.3 / 0.4}])
def test_a_token_on_the_edge_of_a_cut_may_be_chosen_or_not(monkeypatch, cut):
    monkeypatch.setattr("ties.uniform", lambda *_: 0.99)
    probabilities = [0.4, 0.3, 0.3] if "top_k" in cut else [0.4, 0.3, 0.2999, 0.0001]
    assert {1, 2} <= set(chosen(probabilities, **cut))
