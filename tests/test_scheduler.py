"""The scheduler on a small random model: everybody gets what they would get alone."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import llama, qwen3_next
from mlx_lm.models.cache import make_prompt_cache

from jackfield.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from jackfield.engine.request import (
    FinishEvent,
    GenerationRequest,
    PrefillEvent,
    PromptLogprobsEvent,
    SamplingParameters,
    TokenEvent,
)
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import PrefillPace, Scheduler

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


def scheduler(runner: Runner, *, cache_bytes: int = 1 << 30, slice_tokens: int = 2048, max_batch: int = 8) -> Scheduler:
    pace = PrefillPace(smallest=slice_tokens, largest=slice_tokens)
    return Scheduler(runner, PrefixCache(cache_bytes), max_batch, pace)


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


def tokens(events: list) -> list[int]:
    return [event.id for event in events if isinstance(event, TokenEvent)]


def reference(runner: Runner, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without any cache, batch or slices."""
    sequence = list(prompt)
    for _ in range(count):
        sequence.append(int(mx.argmax(runner.model(mx.array([sequence]))[0, -1]).item()))
    return sequence[len(prompt) :]


PROMPTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=80), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(PROMPTS, st.sampled_from([3, 16, 2048]))
def test_batched_sliced_and_cached_answers_are_those_of_plain_decoding(runner, prompts, slice_tokens):
    engine = scheduler(runner, slice_tokens=slice_tokens)
    for _ in range(2):
        events = drain(engine, *[request(str(i), prompt, 4 + i) for i, prompt in enumerate(prompts)])
        for i, prompt in enumerate(prompts):
            assert tokens(events[str(i)]) == reference(runner, prompt, 4 + i)


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens_is_exact_and_ends_with_length(runner, max_tokens):
    events = drain(scheduler(runner), request("a", [1, 2, 3], max_tokens))["a"]
    assert len(tokens(events)) == max_tokens
    assert events[-1] == FinishEvent("length")


def test_a_stop_token_ends_the_answer(runner):
    expected = reference(runner, [5, 6], 6)
    stop = expected[3]
    events = drain(scheduler(runner), request("a", [5, 6], 50, stop_tokens=frozenset({stop})))["a"]
    assert tokens(events) == expected[: expected.index(stop) + 1]
    assert events[-1] == FinishEvent("stop")


def test_the_second_request_finds_the_first_ones_prompt_and_answer(runner):
    engine = scheduler(runner)
    prompt = list(range(50))
    answer = tokens(drain(engine, request("a", prompt, 40))["a"])
    follow_up = [*prompt, *answer, 1, 2, 3]
    events = drain(engine, request("b", follow_up))["b"]
    progress = [event for event in events if isinstance(event, PrefillEvent)]
    # The answer's last token was never fed to the model, so the block that it would have filled is not there.
    assert progress[0].cached == (len(prompt) + len(answer) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert tokens(events) == reference(runner, follow_up, 8)


def test_what_a_cancelled_request_computed_is_kept(runner):
    engine = scheduler(runner, slice_tokens=BLOCK_TOKENS)
    prompt = np.random.default_rng(1).integers(0, VOCABULARY, 200).tolist()
    engine.submit(request("a", prompt))
    engine.step()
    engine.step()
    engine.cancel(frozenset({"a"}))
    assert engine.idle
    progress = [e for e in drain(engine, request("b", prompt))["b"] if isinstance(e, PrefillEvent)]
    assert progress[0].cached == 2 * BLOCK_TOKENS


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


def test_hybrid_models_are_batched_and_never_share_prefixes():
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
    runner = Runner(model)
    assert not runner.shares_prefixes
    prompts = {"a": [1, 2, 3, 4, 5], "b": [7] * 40, "c": [9]}
    events = drain(scheduler(runner, slice_tokens=16), *[request(n, p, 5) for n, p in prompts.items()])
    for name, prompt in prompts.items():
        assert tokens(events[name]) == hybrid_reference(model, prompt, 5)


def hybrid_reference(model, prompt: list[int], count: int) -> list[int]:
    caches = make_prompt_cache(model)
    logits = model(mx.array([prompt]), cache=caches)
    answer = []
    for _ in range(count):
        answer.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([[answer[-1]]]), cache=caches)
    return answer


def test_slices_follow_the_measured_rate_and_are_shorter_in_company():
    pace = PrefillPace(alone=1.0, in_company=0.25, smallest=32, largest=2048, rate=1000)
    assert (pace.slice(0), pace.slice(3)) == (512, 128)
    for _ in range(20):
        pace.measured(128, 128 / 100_000)
    assert (pace.slice(0), pace.slice(3)) == (2048, 2048)
    for _ in range(20):
        pace.measured(64, 64 / 10)
    assert (pace.slice(0), pace.slice(3)) == (32, 32)
