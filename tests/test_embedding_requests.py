"""Requests for embeddings in the engine: read in slices beside streams, in their turn, within memory, ended cleanly."""

import time
from collections.abc import Sequence as Many
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gpt_neox, qwen3

from jackfield.engine.embedding import Embedding
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.pace import PrefillPace
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import (
    EmbeddingEvent,
    EmbeddingRequest,
    EngineEvent,
    EngineRequest,
    FinishEvent,
    GenerationRequest,
    Pooling,
    SamplingParameters,
    StartEvent,
    TokenEvent,
)
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Events, Scheduler
from jackfield.errors import DeadlineExceededError, EngineError, MemoryPressureError
from model_fixtures import tiny_config

VOCABULARY = 64
WIDTH = 32
SLICE = 16


@pytest.fixture(scope="module")
def runner() -> Runner:
    return network()


def network(*, head_dim: int = 8, **options: Any) -> Runner:
    mx.random.seed(7)
    config = tiny_config("qwen3", VOCABULARY, hidden_size=WIDTH, head_dim=head_dim)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    model.load_weights(
        [(name, mx.random.normal(array.shape) * 0.3) for name, array in tree_flatten(model.parameters())]
    )
    mx.eval(model.parameters())
    return Runner(model, **options)


def scheduler(runner: Runner, *, guard: MemoryGuard | None = None, slice_tokens: int = SLICE) -> Scheduler:
    pace = PrefillPace(smallest=slice_tokens, smallest_shared=slice_tokens, largest=slice_tokens)
    return Scheduler(runner, PrefixCache(1 << 30), 4, guard or MemoryGuard(1 << 62), pace)


def texts(*lengths: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    random = np.random.default_rng(seed)
    return tuple(tuple(map(int, random.integers(0, VOCABULARY, length))) for length in lengths)


def asks(*lengths: int, name: str = "e", pooling: Pooling = "mean", **fields: object) -> EmbeddingRequest:
    return EmbeddingRequest(name, texts(*lengths), pooling, **fields)  # type: ignore[arg-type]


def stream(name: str = "s", tokens: int = 400) -> GenerationRequest:
    return GenerationRequest(name, (1, 2, 3), tokens, SamplingParameters(temperature=0))


def drain(engine: Scheduler, *requests: EngineRequest) -> dict[str, list[EngineEvent]]:
    for one in requests:
        engine.submit(one)
    events: dict[str, list[EngineEvent]] = {}
    while not engine.idle:
        for name, event in engine.step():
            events.setdefault(name, []).append(event)
    return events


def vectors(events: Many[EngineEvent]) -> np.ndarray:
    start, found, end = events
    assert isinstance(start, StartEvent)
    assert isinstance(found, EmbeddingEvent)
    assert isinstance(end, FinishEvent)
    assert (end.reason, end.error) == ("stop", None)
    return found.vectors


def direct(runner: Runner, tokens: Many[int], pooling: Pooling) -> np.ndarray:
    """By hand, from the whole text at once."""
    states = np.array(runner.model.model(mx.array([list(tokens)])))[0].astype(np.float64)
    vector = states[-1] if pooling == "last" else states.mean(axis=0)
    return vector / np.linalg.norm(vector)


def error(events: Many[EngineEvent]) -> Exception | None:
    last = events[-1]
    assert isinstance(last, FinishEvent)
    return last.error


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("slice_tokens", [4, SLICE, 2048])
def test_vectors_are_those_of_a_direct_computation(runner: Runner, pooling: Pooling, slice_tokens: int) -> None:
    request = asks(3, 40, 1, 17, 16, 5, 33, 8, pooling=pooling)
    found = vectors(drain(scheduler(runner, slice_tokens=slice_tokens), request)["e"])
    assert found.dtype == np.float32
    assert found.shape == (8, WIDTH)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for tokens, vector in zip(request.inputs, found, strict=True):
        assert np.allclose(vector, direct(runner, tokens, pooling), atol=1e-5)


def test_keys_and_values_of_a_text_in_parts_may_be_quantized() -> None:
    runner = network(head_dim=32, kv_bits=8)
    request = asks(100, 5)
    found = vectors(drain(scheduler(runner), request)["e"])
    for tokens, vector in zip(request.inputs, found, strict=True):
        assert vector @ direct(runner, tokens, "mean") > 0.999


def test_short_texts_share_a_pass_with_others_of_about_their_length(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = spy(runner, monkeypatch)
    drain(scheduler(runner, slice_tokens=64), asks(*[4] * 10, 30, 16, 1))
    assert [sorted(one) for one in passes] == [[16, 30], [4] * 10, [1]]


def spy(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of what went through the network, pass by pass."""
    passes: list[list[int]] = []
    embed = runner.embed

    def noted(inputs: Many[Many[int]], *others: object) -> np.ndarray:
        passes.append([len(tokens) for tokens in inputs])
        return embed(inputs, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "embed", noted)
    return passes


def test_streams_get_their_token_between_slices(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = scheduler(runner), spy(runner, monkeypatch)
    engine.submit(stream())
    while not spoke(engine.step()):
        pass
    engine.submit(asks(200, 100, *[10] * 20))
    ended = False
    while not ended:
        before = len(passes)
        events = engine.step()
        assert spoke(events)
        assert len(passes) - before <= 1
        ended = any(isinstance(event, EmbeddingEvent) for _, event in events)
    assert max(len(one) * max(one) for one in passes) <= SLICE


def spoke(events: Events) -> bool:
    return any(isinstance(event, TokenEvent) for _, event in events)


def test_a_short_request_does_not_wait_for_a_long_one(runner: Runner) -> None:
    engine = scheduler(runner)
    engine.submit(asks(400, name="long"))
    engine.step()
    order = list(drain(engine, asks(5, name="short"), stream("chat", 2)))
    assert order[-1] == "long"


def test_an_answer_is_the_same_beside_embeddings(runner: Runner) -> None:
    alone = drain(scheduler(runner), stream("s", 30))["s"]
    beside = drain(scheduler(runner), stream("s", 30), asks(100, 50, 3))["s"]
    assert [e.id for e in alone if isinstance(e, TokenEvent)] == [e.id for e in beside if isinstance(e, TokenEvent)]


# ---------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "begun", "in parts"])
def test_a_cancelled_request_leaves_nothing(runner: Runner, steps: int) -> None:
    engine = scheduler(runner)
    engine.submit(asks(100, 5))
    for _ in range(steps):
        engine.step()
    engine.cancel(frozenset({"e"}))
    assert engine.idle
    assert engine.room.held == 0
    assert engine.prefix_cache.nbytes == 0


def test_a_request_whose_time_is_over_fails(runner: Runner) -> None:
    engine = scheduler(runner)
    engine.submit(asks(100, deadline=time.monotonic() + 3600))
    engine.step()
    (embedding,) = engine.reading
    assert isinstance(embedding, Embedding)
    object.__setattr__(embedding.request, "deadline", time.monotonic() - 1)
    assert isinstance(error([event for _, event in engine.step()]), DeadlineExceededError)
    assert engine.idle


def test_numbers_that_are_none_end_their_own_request_alone(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = runner.embed

    def broken(inputs: Many[Many[int]], *others: object) -> np.ndarray:
        return embed(inputs, *others) * (np.nan if len(inputs[0]) == 7 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "embed", broken)
    events = drain(scheduler(runner), asks(7, 2, name="bad"), asks(6, name="good"), stream("s", 5))
    failure = error(events["bad"])
    assert isinstance(failure, EngineError)
    assert "not a number" in failure.message
    assert vectors(events["good"]).shape == (1, WIDTH)
    assert error(events["s"]) is None


def test_after_a_failed_step_nothing_is_left(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scheduler(runner)
    engine.submit(asks(100))
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "embed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    engine.clear()
    assert engine.idle
    assert vectors(drain(engine, asks(100))["e"]).shape == (1, WIDTH)


# ---------------------------------------------------------------------------------------- memory


def test_the_longest_text_has_to_fit(runner: Runner) -> None:
    guard = MemoryGuard(runner.lone_row_bytes(300))
    events = drain(scheduler(runner, guard=guard), asks(3000, name="long"), asks(300, 200, name="fits"))
    assert isinstance(error(events["long"]), MemoryPressureError)
    assert vectors(events["fits"]).shape == (2, WIDTH)


def test_it_makes_room_for_others_and_goes_on_where_it_was(runner: Runner) -> None:
    engine, request = scheduler(runner), asks(60, 40, 3)
    engine.submit(stream("s", 50))
    engine.step()
    engine.submit(request)
    events = engine.step()
    (embedding,) = engine.reading
    while embedding.remaining >= 43:  # until it is in the middle of the second text
        events += engine.step()
    assert engine.room.last is embedding
    engine._preempt(embedding)
    assert embedding.remaining == 43
    assert engine.statistics.preemptions == 1
    events += [(name, event) for name, own in drain(engine).items() for event in own]
    found = vectors([event for name, event in events if name == "e"])
    for tokens, vector in zip(request.inputs, found, strict=True):
        assert np.allclose(vector, direct(runner, tokens, "mean"), atol=1e-5)


def test_room_is_kept_for_the_longest_text(runner: Runner) -> None:
    engine = scheduler(runner)
    engine.submit(asks(5, 500))
    engine.step()
    assert engine.room.held >= runner.lone_row_bytes(500)


def test_prefixes_are_neither_taken_nor_kept(runner: Runner) -> None:
    engine = scheduler(runner)
    drain(engine, asks(200))
    assert engine.prefix_cache.nbytes == 0
    assert engine.statistics.hits == 0
    assert not engine.statistics.misses
    assert engine.statistics.prompt_tokens == 200


def test_a_network_without_hidden_states_has_no_pooler() -> None:
    mx.random.seed(0)
    arguments = gpt_neox.ModelArgs(
        model_type="gpt_neox", max_position_embeddings=64, hidden_size=WIDTH, num_attention_heads=4,
        num_hidden_layers=2, layer_norm_eps=1e-5, vocab_size=VOCABULARY, rotary_emb_base=10000, rotary_pct=0.25,
    )  # fmt: skip
    runner = Runner(gpt_neox.Model(arguments))
    assert runner.pooler is None
    with pytest.raises(ValueError, match="hidden states"):
        runner.embed([[1]], "mean")
