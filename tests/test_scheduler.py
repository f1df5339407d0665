"""The scheduler on a small random model: everybody gets what they would get alone."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import gemma2, llama, qwen3_next
from mlx_lm.models.cache import make_prompt_cache

from clock import clock_of
from jackfield.engine import scheduler as engine_scheduler
from jackfield.engine.blocks import BLOCK_TOKENS, Joint
from jackfield.engine.memory import MemoryGuard, Pressure
from jackfield.engine.pace import PrefillPace
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.queue import PASSING_SECONDS
from jackfield.engine.request import (
    CacheUse,
    FinishEvent,
    GenerationRequest,
    PrefillEvent,
    PromptLogprobsEvent,
    SamplingParameters,
    StartEvent,
    TokenEvent,
)
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import READERS, Scheduler
from jackfield.engine.slab import Slab, SlabSizes
from jackfield.errors import DeadlineExceededError, EngineError, MemoryPressureError

VOCABULARY = 64
GREEDY = SamplingParameters(temperature=0)


@pytest.fixture(scope="module")
def runner() -> Runner:
    mx.random.seed(7)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
    )
    model = llama.Model(arguments)
    # Large weights, so that tokens are far apart and rounding never decides.
    model.update_modules(model.leaf_modules())
    model.load_weights([(k, mx.random.normal(v.shape) * 0.4) for k, v in _parameters(model)])
    mx.eval(model.parameters())
    return Runner(model)


def _parameters(model):
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())


def scheduler(
    runner: Runner,
    *,
    cache_bytes: int = 1 << 30,
    slice_tokens: int = 2048,
    max_batch: int = 8,
    guard: MemoryGuard | None = None,
) -> Scheduler:
    pace = PrefillPace(smallest=slice_tokens, smallest_shared=slice_tokens, largest=slice_tokens)
    return Scheduler(runner, PrefixCache(cache_bytes), max_batch, guard or MemoryGuard(1 << 62), pace)


def request(name: str, prompt: list[int], max_tokens: int = 8, **fields) -> GenerationRequest:
    fields = {"sampling": GREEDY, **fields}
    return GenerationRequest(name, tuple(prompt), max_tokens, **fields)


def drain(engine: Scheduler, *requests: GenerationRequest) -> dict[str, list]:
    for one in requests:
        engine.submit(one)
    events: dict[str, list] = {}
    while not engine.idle:
        for name, event in engine.step():
            events.setdefault(name, []).append(event)
    return events


def cache_use(events: list) -> CacheUse:
    (start,) = [event for event in events if isinstance(event, StartEvent)]
    return start.cache


def tokens(events: list) -> list[int]:
    return [event.id for event in events if isinstance(event, TokenEvent)]


def finish(events: list) -> str:
    """Why the answer ended; nothing comes after that."""
    (index,) = [index for index, event in enumerate(events) if isinstance(event, FinishEvent)]
    assert index == len(events) - 1
    return events[-1].reason


def error(events: list) -> Exception:
    assert finish(events) == "error"
    return events[-1].error


def reference(runner: Runner, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without any cache, batch or slices."""
    sequence = list(prompt)
    for _ in range(count):
        sequence.append(int(mx.argmax(runner.model(mx.array([sequence]))[0, -1]).item()))
    return sequence[len(prompt) :]


def are_most_likely(runner: Runner, prompt: list[int], answer: list[int]) -> bool:
    """Whether each token is, after all before it, without cache, batch and slices; or all but, as sums are rounded."""
    logits = np.array(runner.model(mx.array([[*prompt, *answer]]))[0, len(prompt) - 1 : -1])
    chosen = np.take_along_axis(logits, np.array(answer)[:, None], axis=-1)
    return bool((chosen[:, 0] > logits.max(axis=-1) - 1e-4).all())


PROMPTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=80), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(PROMPTS, st.sampled_from([3, 16, 2048]))
def test_batched_sliced_and_cached_answers_are_those_of_plain_decoding(runner, prompts, slice_tokens):
    engine = scheduler(runner, slice_tokens=slice_tokens)
    for _ in range(2):
        events = drain(engine, *[request(str(i), prompt, 4 + i) for i, prompt in enumerate(prompts)])
        for i, prompt in enumerate(prompts):
            answer = tokens(events[str(i)])
            assert len(answer) == 4 + i
            assert are_most_likely(runner, prompt, answer)


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens_is_exact_and_ends_with_length(runner, max_tokens):
    events = drain(scheduler(runner), request("a", [1, 2, 3], max_tokens))["a"]
    assert len(tokens(events)) == max_tokens
    assert finish(events) == "length"


def test_a_request_for_nothing_leaves_its_prompt_in_the_prefix_cache(runner):
    engine, prompt = scheduler(runner), list(range(50))
    events = drain(engine, request("a", prompt, 0))["a"]
    assert [type(event) for event in events] == [StartEvent, PrefillEvent, FinishEvent]
    assert finish(events) == "length"
    assert not engine.reading
    events = drain(engine, request("b", [*prompt, 1], 4))["b"]
    assert cache_use(events).tokens == 49 // BLOCK_TOKENS * BLOCK_TOKENS
    assert tokens(events) == reference(runner, [*prompt, 1], 4)


def test_a_stop_token_ends_the_answer(runner):
    expected = reference(runner, [5, 6], 6)
    stop = expected[3]
    events = drain(scheduler(runner), request("a", [5, 6], 50, stop_tokens=frozenset({stop})))["a"]
    assert tokens(events) == expected[: expected.index(stop) + 1]
    assert finish(events) == "stop"


def test_the_second_request_finds_the_first_ones_prompt_and_answer(runner):
    engine = scheduler(runner)
    prompt = list(range(50))
    answer = tokens(drain(engine, request("a", prompt, 40))["a"])
    follow_up = [*prompt, *answer, 1, 2, 3]
    events = drain(engine, request("b", follow_up))["b"]
    # The answer's last token was never fed to the model, so the block that it would have filled is not there.
    assert cache_use(events).tokens == (len(prompt) + len(answer) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert tokens(events) == reference(runner, follow_up, 8)


def test_what_a_cancelled_request_computed_is_kept(runner):
    engine = scheduler(runner, slice_tokens=BLOCK_TOKENS)
    prompt = np.random.default_rng(1).integers(0, VOCABULARY, 200).tolist()
    engine.submit(request("a", prompt))
    engine.step()
    engine.step()
    engine.cancel(frozenset({"a"}))
    assert engine.idle
    assert cache_use(drain(engine, request("b", prompt))["b"]) == CacheUse(2 * BLOCK_TOKENS, 0, "diverged")


@pytest.mark.parametrize("steps", range(6))
def test_cancelling_at_any_moment_leaves_the_others_alone(runner, steps):
    engine = scheduler(runner, slice_tokens=4)
    others = {"b": [4, 5, 6, 7], "c": [9] * 10}
    engine.submit(request("a", [1, 2, 3], 30, top_logprobs=2))
    for name, prompt in others.items():
        engine.submit(request(name, prompt, 6, top_logprobs=1))
    events: dict[str, list] = {}
    for _ in range(steps):
        for name, event in engine.step():
            events.setdefault(name, []).append(event)
    engine.cancel(frozenset({"a"}))
    for name, more in drain(engine).items():
        events.setdefault(name, []).extend(more)
    assert not isinstance(events.get("a", [None])[-1], FinishEvent)
    for name, prompt in others.items():
        assert tokens(events[name]) == reference(runner, prompt, 6)
        assert all(len(e.top) == 1 and e.top[0][0] == e.id for e in events[name] if isinstance(e, TokenEvent))


def test_log_probabilities_are_of_the_sampled_token_and_sum_to_one(runner):
    hot = SamplingParameters(temperature=2.0, seed=3, frequency_penalty=1.0)
    events = drain(
        scheduler(runner),
        request("a", [1, 2], 6, sampling=hot, top_logprobs=20),
        request("b", [3], 6, sampling=hot),
        request("c", [3], 6, sampling=hot, top_logprobs=0),
    )
    sequence = [1, 2]
    for event in (e for e in events["a"] if isinstance(e, TokenEvent)):
        logits = runner.model(mx.array([sequence]))[0, -1]
        expected = logits - mx.logsumexp(logits)
        assert event.logprob == pytest.approx(expected[event.id].item(), abs=1e-3)
        best = mx.argsort(-expected)[:20].tolist()
        assert [token for token, _ in event.top] == best
        assert [p for _, p in event.top] == pytest.approx([expected[t].item() for t in best], abs=1e-3)
        sequence.append(event.id)
    assert all(event.logprob is None for event in events["b"] if isinstance(event, TokenEvent))
    assert all(event.logprob is not None and not event.top for event in events["c"] if isinstance(event, TokenEvent))


def test_prompt_log_probabilities(runner):
    prompt = [1, 2, 3, 4, 5, 6, 7]
    events = drain(scheduler(runner, slice_tokens=3), request("a", prompt, 2, top_logprobs=1, prompt_logprobs=True))
    (scored,) = [event for event in events["a"] if isinstance(event, PromptLogprobsEvent)]
    logits = runner.model(mx.array([prompt]))[0]
    expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    assert [event.id for event in scored.tokens] == prompt
    assert scored.tokens[0].logprob is None
    for position, event in enumerate(scored.tokens[1:]):
        assert event.logprob == pytest.approx(expected[position, event.id].item(), abs=1e-3)
    assert tokens(events["a"]) == reference(runner, prompt, 2)


def test_same_seed_same_tokens_in_any_company(runner):
    sampling = SamplingParameters(temperature=1.5, top_p=0.9, seed=11, presence_penalty=0.5)
    alone = tokens(drain(scheduler(runner), request("a", [1, 2, 3], 20, sampling=sampling))["a"])
    company = [
        request(f"x{i}", [i] * (i + 1), 3 + 2 * i, sampling=SamplingParameters(seed=i, top_k=i)) for i in range(5)
    ]
    together = drain(scheduler(runner), *company[:3], request("a", [1, 2, 3], 20, sampling=sampling), *company[3:])
    assert tokens(together["a"]) == alone
    other = SamplingParameters(temperature=1.5, top_p=0.9, seed=12, presence_penalty=0.5)
    assert tokens(drain(scheduler(runner), request("a", [1, 2, 3], 20, sampling=other))["a"]) != alone


def test_no_more_than_max_batch_are_answered_at_once(runner):
    engine = scheduler(runner, max_batch=2)
    for i in range(5):
        engine.submit(request(str(i), [i + 1], 5))
    most = 0
    while not engine.idle:
        engine.step()
        most = max(most, len(engine.batch))
    assert most == 2


@pytest.fixture(scope="module")
def hybrid() -> Runner:
    """Three linear layers and one of attention."""
    mx.random.seed(3)
    arguments = qwen3_next.ModelArgs(
        model_type="qwen3_next", hidden_size=32, num_hidden_layers=4, intermediate_size=64, num_attention_heads=4,
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        linear_conv_kernel_dim=4, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
        shared_expert_intermediate_size=32, mlp_only_layers=[], moe_intermediate_size=32, rms_norm_eps=1e-5,
        vocab_size=VOCABULARY, num_key_value_heads=2, rope_theta=10000.0, partial_rotary_factor=0.5,
        max_position_embeddings=512, head_dim=16,
    )  # fmt: skip
    model = qwen3_next.Model(arguments)
    model.load_weights([(k, mx.random.normal(v.shape) * 0.3) for k, v in _parameters(model)])
    mx.eval(model.parameters())
    return Runner(model)


def test_hybrid_models_are_batched(hybrid):
    prompts = {"a": [1, 2, 3, 4, 5], "b": [7] * 40, "c": [9]}
    engine = Scheduler(
        hybrid, PrefixCache(1 << 20, stateful=True), 8, pace=PrefillPace(smallest=16, smallest_shared=16, largest=16)
    )
    events = drain(engine, *[request(n, p, 5) for n, p in prompts.items()])
    for name, prompt in prompts.items():
        assert tokens(events[name]) == hybrid_reference(hybrid.model, prompt, 5)


def test_hybrid_models_take_up_what_is_exact_and_never_more(hybrid):
    engine = Scheduler(hybrid, PrefixCache(1 << 24, stateful=True), 8)
    shared = np.random.default_rng(2).integers(0, VOCABULARY, 3 * BLOCK_TOKENS + 5).tolist()
    prompts = [[*shared, *([own] * (BLOCK_TOKENS + 9))] for own in range(4)]
    expected = [hybrid_reference(hybrid.model, prompt, 5) for prompt in prompts]
    uses = []
    for index in (0, 0, 1, 2, 3):
        events = drain(engine, request("x", prompts[index], 5))["x"]
        assert tokens(events) == expected[index]
        uses.append(cache_use(events))
    whole = (len(prompts[0]) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    # The second prompt parts from the first where no state was kept; that place is remembered for the third.
    assert [use.tokens for use in uses] == [0, whole, 0, 3 * BLOCK_TOKENS, 3 * BLOCK_TOKENS]
    assert [use.miss for use in uses] == ["new", None, "no_snapshot", "diverged", "diverged"]


def hybrid_reference(model, prompt: list[int], count: int) -> list[int]:
    caches = make_prompt_cache(model)
    logits = model(mx.array([prompt]), cache=caches)
    answer = []
    for _ in range(count):
        answer.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([[answer[-1]]]), cache=caches)
    return answer


def test_everybody_is_told_why_the_cache_did_not_help(runner):
    engine = scheduler(runner)
    long = list(range(60))
    assert cache_use(drain(engine, request("a", [1, 2]))["a"]) == CacheUse(0, 0, "short")
    assert cache_use(drain(engine, request("a", long, prompt_logprobs=True))["a"]) == CacheUse(0, 0, "scored")
    assert cache_use(drain(engine, request("a", long))["a"]) == CacheUse(BLOCK_TOKENS)
    assert cache_use(drain(engine, request("a", [5, *long]))["a"]) == CacheUse(0, 0, "new")
    off = scheduler(runner, cache_bytes=0)
    assert cache_use(drain(off, request("a", long))["a"]) == CacheUse(0, 0, "off")
    counts = engine.statistics
    assert (counts.hits, dict(counts.misses)) == (1, {"short": 1, "scored": 1, "new": 1})
    assert counts.cached_tokens["memory"] == BLOCK_TOKENS
    assert counts.prompt_tokens == 2 + 60 + 60 + 61


def first_tokens(engine: Scheduler, *requests: GenerationRequest) -> list[str]:
    """In which order the requests get their first tokens."""
    for one in requests:
        engine.submit(one)
    order: list[str] = []
    while not engine.idle:
        for name, event in engine.step():
            if isinstance(event, TokenEvent) and name not in order:
                order.append(name)
    return order


def test_lower_priorities_go_first(runner):
    engine = scheduler(runner, max_batch=1)
    engine.submit(request("running", [1], 3))
    engine.step()
    waiting = [request(name, [2, 3], 2, priority=priority) for name, priority in (("c", 5), ("b", 0), ("a", -5))]
    assert first_tokens(engine, *waiting) == ["running", "a", "b", "c"]


def test_a_short_prompt_need_not_wait_for_a_long_one_which_ends_all_the_same(runner):
    engine = scheduler(runner, slice_tokens=4)
    long = request("long", (np.arange(100) % VOCABULARY).tolist(), 2)
    short = [request(f"short {i}", [i, 2, 3, 4, 5, 6], 2) for i in range(20)]
    order = first_tokens(engine, long, *short)
    assert order[0] == "short 0"
    assert order.index("long") < len(order) - 1
    assert len(engine.reading) <= READERS


def test_deadlines_end_requests_wherever_they_are(runner, monkeypatch):
    clock = clock_of(monkeypatch, engine_scheduler)
    now = clock.monotonic()
    engine = scheduler(runner, slice_tokens=4, max_batch=1)
    engine.guard.clock = clock.monotonic
    engine.submit(request("answering", [1, 2], 1000, deadline=now + 600))
    engine.submit(request("waiting", [1, 2], 1000, deadline=now + 500))
    engine.submit(request("patient", [1, 2], 3, deadline=now + 10_000))
    events: dict[str, list] = {}
    while not engine.idle:
        for name, event in engine.step():
            events.setdefault(name, []).append(event)
        clock.ahead += 100
    assert finish(events["answering"]) == "timeout"
    got = tokens(events["answering"])
    assert got == reference(runner, [1, 2], len(got))
    assert isinstance(error(events["waiting"]), DeadlineExceededError)
    assert finish(events["patient"]) == "length"
    late = scheduler(runner, slice_tokens=4)
    late.guard.clock = clock.monotonic
    late.submit(request("reading", [1] * 100, deadline=clock.monotonic() + 600))
    late.step()
    clock.ahead += 700
    assert isinstance(error(drain(late)["reading"]), DeadlineExceededError)


def test_a_prompt_is_read_in_full_when_who_was_answered_beside_it_leaves(runner, monkeypatch):
    clock = clock_of(monkeypatch, engine_scheduler)
    engine = scheduler(runner, slice_tokens=4)
    engine.guard.clock = clock.monotonic
    prompt = (np.arange(100) % VOCABULARY).tolist()
    engine.submit(request("a", [1, 2], 1000, deadline=clock.monotonic() + 600))
    engine.step()
    engine.submit(request("b", prompt, 4))
    events = [event for _ in range(3) for name, event in engine.step() if name == "b"]
    clock.ahead += 700
    assert tokens([*events, *drain(engine)["b"]]) == reference(runner, prompt, 4)


def test_a_logits_processor_steers_its_own_request_alone(runner):
    seen = []

    def only_seven(sequence: tuple[int, ...], logits: mx.array) -> mx.array:
        seen.append(sequence)
        return mx.where(mx.arange(VOCABULARY) == 7, logits, -mx.inf)

    events = drain(scheduler(runner), request("a", [1, 2], 4, processors=(only_seven,)), request("b", [1, 2], 4))
    assert tokens(events["a"]) == [7] * 4
    assert tokens(events["b"]) == reference(runner, [1, 2], 4)
    assert seen == [(1, 2), (1, 2, 7), (1, 2, 7, 7), (1, 2, 7, 7, 7)]


@pytest.mark.parametrize("answer", [lambda *_: 1 / 0, lambda _, logits: logits[:3], lambda *_: None])
def test_a_logits_processor_that_fails_costs_its_own_request_alone(runner, answer):
    events = drain(scheduler(runner), request("a", [1, 2], 4, processors=(answer,)), request("b", [1, 2], 4))
    assert isinstance(error(events["a"]), EngineError)
    assert "logits processor" in str(error(events["a"]))
    assert tokens(events["b"]) == reference(runner, [1, 2], 4)


def test_output_that_is_not_a_number_ends_its_request_and_is_not_reused(runner, monkeypatch):
    engine = scheduler(runner)
    prompt = list(range(60))
    whole = Runner.decode

    def broken(self, *arguments):
        logits = whole(self, *arguments)
        logits[0] = mx.nan
        return logits

    engine.submit(request("a", prompt, 4))
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "decode", broken)
        first = [event for _, event in engine.step()]
    events = drain(engine, request("b", [1, 2], 4))
    assert isinstance(error([*first, *events["a"]]), EngineError)
    assert tokens(events["b"]) == reference(runner, [1, 2], 4)
    assert cache_use(drain(engine, request("c", prompt))["c"]).tokens == 0


# --- Memory -----------------------------------------------------------------------------------------------------


def room_for(runner: Runner, *lengths: int) -> int:
    return sum(map(runner.row_bytes, lengths))


def test_nobody_gets_in_for_whom_there_is_no_room(runner):
    prompts = [[i + 1] * 300 for i in range(4)]
    engine = scheduler(runner, guard=MemoryGuard(2 * runner.row_bytes(300)))
    for i, prompt in enumerate(prompts):
        engine.submit(request(str(i), prompt, 5))
    events: dict[str, list] = {}
    most = 0
    while not engine.idle:
        for name, event in engine.step():
            events.setdefault(name, []).append(event)
        most = max(most, len(engine.batch) + len(engine.reading))
        assert engine.room.held <= engine.guard.room
    assert most == 2
    for i, prompt in enumerate(prompts):
        assert tokens(events[str(i)]) == reference(runner, prompt, 5)


TINY = SlabSizes(smallest=8, largest=16, step=4)
REQUESTS = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 30)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def tiny(runner) -> Runner:
    """Rows that soon outgrow their slabs."""
    return Runner(runner.model, sizes=TINY)


@settings(max_examples=15, deadline=None)
@given(REQUESTS, st.integers(60, 250), st.sampled_from([3, 2048]), st.booleans())
def test_the_pool_is_never_exceeded_and_everybody_gets_an_answer(tiny, lengths, pool, slice_tokens, cached):
    requests = [request(str(i), [(7 * i + j) % 60 for j in range(n)], most) for i, (n, most) in enumerate(lengths)]
    guard = MemoryGuard(pool * tiny.bytes_per_token)
    engine = scheduler(tiny, guard=guard, slice_tokens=slice_tokens, cache_bytes=(1 << 30) * cached)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jackfield.engine.room.GROWTH", 4)
        held = watched(engine, patch)
        events = drain(engine, *requests)
    assert max(held, default=0) <= guard.room
    for one in requests:
        if TINY.round_up(len(one.prompt) + one.max_tokens) > pool:
            assert isinstance(error(events[one.id]), MemoryPressureError)
        else:
            assert tokens(events[one.id]) == tokens(drain(scheduler(tiny), one)[one.id])
    assert engine.room.held == 0


def watched(engine: Scheduler, patch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that rows, prompts and prefix cache hold together after everything that may change them."""
    held: list[int] = []

    def note(method):
        def noted(*arguments, **options):
            result = method(*arguments, **options)
            own = sum(cache.nbytes for sequence in engine.reading for cache in sequence.caches)
            own += sum(sequence.lookup.nbytes for sequence in engine.reading if sequence.lookup)
            held.append(engine.batch.nbytes + own + engine.prefix_cache.nbytes)
            return result

        return noted

    changes = {
        Slab: ("adopt", "add", "keep", "_resize"),
        PrefixCache: ("_add", "shrink"),
        Runner: ("prefill", "decode", "reserve"),
        Joint: ("put",),
    }
    for owner, names in changes.items():
        for name in names:
            patch.setattr(owner, name, note(getattr(owner, name)))
    return held


def test_small_requests_pass_a_large_one_for_which_there_is_no_room_but_not_for_ever(runner):
    engine = scheduler(runner, guard=MemoryGuard(1300 * runner.bytes_per_token))
    engine.submit(request("running", [1] * 300, 200))
    engine.step()
    large, small = request("large", [2] * 900, 20), request("small", [3, 4], 3, priority=PASSING_SECONDS - 5)
    late = request("late", [5, 6], 3, priority=PASSING_SECONDS + 5)
    for one in (large, late, small):
        engine.submit(one)
    started: list[str] = []
    while not engine.idle:
        started += [name for name, event in engine.step() if isinstance(event, StartEvent)]
    assert started == ["small", "large", "late"]


def test_the_prefix_cache_gives_way_and_comes_back(runner):
    engine = scheduler(runner, guard=MemoryGuard(runner.row_bytes(600) + (1 << 20)), cache_bytes=1 << 30)
    drain(engine, request("a", (np.arange(400) % VOCABULARY).tolist(), 2))
    assert engine.prefix_cache.nbytes > 0
    engine.submit(request("b", [3] * 300, 20))
    while not engine.idle:
        engine.step()
        assert engine.room.held + engine.prefix_cache.nbytes <= engine.guard.room


def test_what_a_request_finds_in_the_prefix_cache_gives_way_last(runner):
    first, second = [[(7 * i + seed) % 60 for i in range(1024)] for seed in (1, 2)]
    # Room for what is kept of both prompts, but not beside a third request.
    engine = scheduler(runner, guard=MemoryGuard(3600 * runner.bytes_per_token))
    drain(engine, request("first", first, 2), request("second", second, 2))
    cached = engine.prefix_cache.nbytes
    events = drain(engine, request("again", [*first, *range(60), *range(60), *range(60)], 80))
    assert engine.prefix_cache.nbytes < cached
    assert cache_use(events["again"]).tokens == 1024


def test_an_answer_that_outgrows_the_memory_waits_and_goes_on_where_it_was(runner):
    sampling = SamplingParameters(temperature=1.2, seed=5, frequency_penalty=0.3, repetition_penalty=1.1)
    requests = [request(str(i), [i + 1] * 8, 400, sampling=sampling, top_logprobs=1) for i in range(3)]
    alone = [drain(scheduler(runner), one)[one.id] for one in requests]
    # Room for three at first, not for three that have outgrown the smallest rows.
    engine = scheduler(runner, guard=MemoryGuard(runner.row_bytes(1) * 4), cache_bytes=0)
    together = drain(engine, *requests)
    assert engine.statistics.preemptions > 0
    for one, expected in zip(requests, alone, strict=True):
        assert tokens(together[one.id]) == tokens(expected)
        assert len([e for e in together[one.id] if isinstance(e, StartEvent)]) == 1
    assert sum(events[-1].preemptions for events in together.values()) == engine.statistics.preemptions
    assert together["0"][-1].preemptions == 0, "the first to come is never sent back"


def test_a_request_that_cannot_fit_at_all_is_refused_at_once(runner):
    engine = scheduler(runner, guard=MemoryGuard(runner.row_bytes(300)))
    events = drain(engine, request("large", [1] * 2000), request("small", [1, 2], 3))
    assert isinstance(error(events["large"]), MemoryPressureError)
    assert tokens(events["small"]) == reference(runner, [1, 2], 3)


def test_under_pressure_the_cache_goes_first_then_newcomers_wait_then_all_but_one_do(runner):
    free = [1000]
    guard = MemoryGuard(1 << 40, 100, lambda: free[0], lambda: next(clock))
    clock = iter(range(1 << 30))
    engine = scheduler(runner, guard=guard)
    drain(engine, request("warm", (np.arange(200) % VOCABULARY).tolist(), 2))
    cached = engine.prefix_cache.nbytes
    assert guard.pressure is Pressure.NONE
    for name in "ab":
        engine.submit(request(name, [ord(name) % VOCABULARY], 60))
    events: dict[str, list] = {}

    def step() -> None:
        for name, event in engine.step():
            events.setdefault(name, []).append(event)

    step()
    step()
    assert len(engine.batch) == 2
    free[0] = 90
    step()
    assert engine.prefix_cache.nbytes < cached
    assert guard.pressure is Pressure.SLOWING
    engine.submit(request("c", [9], 2))
    step()
    assert len(engine.waiting) == 1
    free[0] = 60
    step()
    assert guard.pressure is Pressure.SLOWING, "half of the reserve is left"
    assert len(engine.batch) == 2
    free[0] = 10
    step()
    assert guard.pressure is Pressure.REFUSING
    assert [sequence.request.id for sequence in engine.batch.sequences] == ["a"]
    free[0] = 110
    step()
    assert guard.pressure is Pressure.SLOWING, "not before there is a little more"
    free[0] = 130
    for name, more in drain(engine).items():
        events.setdefault(name, []).extend(more)
    assert guard.pressure < Pressure.SLOWING
    for name in "ab":
        assert tokens(events[name]) == reference(runner, [ord(name) % VOCABULARY], 60)
    assert tokens(events["c"]) == reference(runner, [9], 2)


def test_with_memory_nearly_gone_who_waits_goes_on_waiting_and_an_idle_engine_recovers(runner, monkeypatch):
    free = [1]
    clock = iter(range(1 << 30))
    engine = scheduler(runner, guard=MemoryGuard(1 << 40, 100, lambda: free[0], lambda: next(clock)))
    engine.submit(request("patient", [1, 2], 3))
    for _ in range(5):
        assert engine.step() == []
    assert engine.guard.pressure is Pressure.REFUSING
    free[0] = 1000
    assert tokens(drain(engine)["patient"]) == reference(runner, [1, 2], 3)
    free[0] = 1
    engine.rest()
    assert engine.statistics.pressure == "refusing"
    free[0] = 1000
    engine.rest()
    assert engine.statistics.pressure == "none"
    free[0] = 1
    monkeypatch.setattr("jackfield.engine.room.REFUSING_SECONDS", 0.05)
    assert isinstance(error(drain(engine, request("given up", [1, 2]))["given up"]), MemoryPressureError)


def test_what_fits_alone_is_let_in_alone(runner):
    # Rows that share a slab have room to grow, which a lone one as large as the memory does not need.
    prompt = (np.arange(1800) % VOCABULARY).tolist()
    engine = scheduler(runner, guard=MemoryGuard(2304 * runner.bytes_per_token))
    events = drain(engine, request("large", prompt, 8), request("small", [1, 2], 3))
    assert finish(events["large"]) == "length"
    assert tokens(events["small"]) == reference(runner, [1, 2], 3)


def test_an_answer_that_had_to_make_room_is_not_given_up(runner):
    engine = scheduler(runner, guard=MemoryGuard(1800 * runner.bytes_per_token), cache_bytes=0)
    events = drain(engine, request("a", [3] * 450, 200), request("b", [3] * 700, 200))
    assert [len(tokens(events[name])) for name in "ab"] == [200, 200]


def test_full_memory_does_not_make_requests_push_each_other_out(runner):
    engine = scheduler(runner, guard=MemoryGuard(11 * 1024 * runner.bytes_per_token), cache_bytes=0, max_batch=32)
    requests = [request(str(i), [(7 * i + j) % 60 for j in range(400)], 300) for i in range(20)]
    events = drain(engine, *requests)
    assert all(len(tokens(events[one.id])) == 300 for one in requests)
    assert engine.statistics.preemptions < 20


def test_progress_is_told_of_the_prompt_alone(runner):
    engine = scheduler(runner, guard=MemoryGuard(runner.row_bytes(1) * 4), cache_bytes=0)
    events = drain(engine, *[request(str(i), [i + 1] * 8, 400) for i in range(3)])
    assert engine.statistics.preemptions > 0
    progress = [event for own in events.values() for event in own if isinstance(event, PrefillEvent)]
    assert all(event.done <= event.total for event in progress)


def test_buffers_that_mlx_keeps_go_before_the_prefix_cache(runner, monkeypatch):
    free = [1 << 40]
    engine = scheduler(runner, guard=MemoryGuard(1 << 40, 100, lambda: free[0], lambda: next(clock)))
    clock = iter(range(1 << 30))
    drain(engine, request("warm", (np.arange(200) % VOCABULARY).tolist(), 2))
    cached = engine.prefix_cache.nbytes
    free[0] = 50
    monkeypatch.setattr(Runner, "release", lambda _: free.__setitem__(0, 1000))
    engine.rest()
    assert engine.prefix_cache.nbytes == cached
    assert engine.guard.pressure is Pressure.NONE


def test_a_model_whose_rows_must_be_equally_long_is_served_too():
    """Gemma 2 looks into its masks, so all rows share one rectangle."""
    mx.random.seed(4)
    arguments = gemma2.ModelArgs(
        model_type="gemma2", hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
        head_dim=8, rms_norm_eps=1e-5, vocab_size=VOCABULARY, num_key_value_heads=2,
    )  # fmt: skip
    model = gemma2.Model(arguments)
    model.load_weights([(k, mx.random.normal(v.shape) * 0.3) for k, v in _parameters(model)])
    mx.eval(model.parameters())
    rigid = Runner(model)
    assert not rigid.ragged
    prompts = {"a": [1, 2, 3], "b": [7] * 300, "c": [9] * 30}
    room = 2 * rigid.row_bytes(300 + 5)
    events = drain(
        scheduler(rigid, guard=MemoryGuard(room), cache_bytes=0), *[request(n, p, 5) for n, p in prompts.items()]
    )
    for name, prompt in prompts.items():
        assert tokens(events[name]) == reference(rigid, prompt, 5)
