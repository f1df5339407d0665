"""The decode batch's KV cache: every row holds what it would hold alone."""

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache

from jackfield.engine.kv_cache import LENGTH_STEP, RowKVCache, Rows

HEADS, DIMENSION = 2, 4


def filled(values: list[float]) -> KVCache:
    cache = KVCache()
    if values:
        array = mx.broadcast_to(mx.array(values)[None, None, :, None], (1, HEADS, len(values), DIMENSION))
        cache.update_and_fetch(array, -array)
    return cache


def incoming(values: list[float]) -> mx.array:
    return mx.broadcast_to(mx.array(values)[:, None, None, None], (len(values), HEADS, 1, DIMENSION))


class Batch:
    """A row cache next to plain lists that say what it must hold."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.cache = RowKVCache(self.rows)
        self.expected: list[list[float]] = []
        self.count = 0

    def join(self, length: int) -> None:
        values = [self._next() for _ in range(length)]
        self.cache.extend(filled(values))
        self.rows.append(length)
        self.expected.append(values)

    def step(self) -> None:
        if not self.expected:
            return
        values = [self._next() for _ in self.expected]
        mask = self.cache.make_mask(1)
        keys, negated = self.cache.update_and_fetch(incoming(values), -incoming(values))
        self.rows.advance(1)
        for row, value in enumerate(values):
            self.expected[row].append(value)
            seen = keys[row, 0, :, 0] if mask is None else keys[row, 0, :, 0][: int(mask[row].sum().item())]
            assert seen.tolist() == self.expected[row]
        assert mx.array_equal(keys, -negated)

    def leave(self, row: int) -> None:
        keep = [i for i in range(len(self.expected)) if i != row]
        self.cache.filter(keep)
        self.rows.keep(keep)
        self.expected = [self.expected[i] for i in keep]

    def check(self) -> None:
        for row, values in enumerate(self.expected):
            cache = self.cache.extract(row)
            assert (cache.keys[0, 1, :, 2].tolist() if values else []) == values

    def _next(self) -> float:
        self.count += 1
        return float(self.count)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.integers(0, 9)),
            st.tuples(st.sampled_from(["step", "leave"]), st.integers(0, 9)),
        ),
        max_size=25,
    )
)
def test_rows_keep_their_own_positions_while_others_come_and_go(actions):
    batch = Batch()
    for action, number in actions:
        if action == "join":
            batch.join(number)
        elif action == "step":
            batch.step()
        elif batch.expected:
            batch.leave(number % len(batch.expected))
    if any(batch.expected):
        batch.step()
        batch.check()


def test_rows_that_hold_nothing_yet_change_places():
    batch = Batch()
    for length in (2, 0, 0):
        batch.join(length)
    batch.leave(0)
    assert len(batch.expected) == 2
    batch.step()
    batch.check()


def test_rows_longer_than_one_step_of_growth():
    batch = Batch()
    batch.join(LENGTH_STEP - 1)
    batch.join(3)
    for _ in range(3):
        batch.step()
    batch.check()


def test_a_single_row_needs_no_mask_and_unequal_rows_do():
    batch = Batch()
    batch.join(5)
    assert batch.cache.make_mask(1) is None
    batch.join(2)
    assert batch.cache.make_mask(1)[:, 0, 0].tolist() == [[True] * 6, [True] * 3 + [False] * 3]


def test_several_tokens_at_once_see_only_what_comes_before_them():
    batch = Batch()
    batch.join(2)
    batch.join(1)
    mask = batch.cache.make_mask(2)
    assert mask[:, 0].astype(mx.int32).tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 1, 0]]]


def test_sliding_windows_are_refused():
    with pytest.raises(ValueError, match="window"):
        RowKVCache(Rows()).make_mask(1, window_size=4)


def test_room_is_given_back_when_a_long_row_leaves():
    batch = Batch()
    for length in (5, 3 * LENGTH_STEP, 4):
        batch.join(length)
    batch.step()
    full = batch.cache.nbytes
    batch.leave(1)
    assert batch.cache.nbytes <= full / 4
    batch.step()
    batch.check()
