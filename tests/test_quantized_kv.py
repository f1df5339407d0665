"""Keys and values in 8 and 4 bits: rows of a batch, slices of a prompt and whole prompts give the same answers."""

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import gpt_oss, llama, mamba
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache
from tokenizers import Tokenizer

from jackfield.engine.kv_cache import QuantizedRowKVCache, arrays
from jackfield.engine.runner import Cache, CacheBatch, Runner
from jackfield.engine.slab import SlabSizes
from jackfield.errors import ModelLoadError
from jackfield.models import cpu
from jackfield.models.loading import load_network

BITS = [8, 4]
SMALL = SlabSizes(smallest=4, largest=8, step=2)
TOLERANCE = {8: 0.02, 4: 0.1}
"""Of the logits' norm. The last bit of an element may be rounded another way in another batch."""
PROMPTS = [[7], [1, 2, 3, 4, 5, 6], [9] * 30, [3, 1], list(range(40)), [4, 4, 8]]


@pytest.fixture(scope="module")
def model(tiny_model, device) -> nn.Module:
    return load_network(tiny_model, device, prepare=cpu.prepare).model


def runner_of(model: nn.Module, bits: int) -> Runner:
    return Runner(model, kv_bits=bits, kv_group_size=64, sizes=SMALL)


def read(runner: Runner, tokens: list[int]) -> list[Cache]:
    caches = runner.start()
    if tokens:
        runner.prefill(caches, tokens)
    return caches


def batch_of(runner: Runner, prompts: list[list[int]]) -> CacheBatch:
    """The prompts but for their last tokens."""
    batch = runner.batch()
    for prompt in prompts:
        batch.join(read(runner, prompt[:-1]), len(prompt) - 1)
    return batch


def alone(runner: Runner, prompt: list[int]) -> mx.array:
    return runner.model(mx.array([prompt[-1:]]), cache=read(runner, prompt[:-1]))[0, -1]


def assert_close(found: mx.array, expected: mx.array, bits: int) -> None:
    assert (mx.linalg.norm(found - expected) / mx.linalg.norm(expected)).item() < TOLERANCE[bits]


@pytest.mark.parametrize("bits", BITS)
def test_heads_that_64_does_not_divide_are_quantized_in_groups_of_32(bits):
    cache = Runner(llama_model(head_dim=96), kv_bits=bits).start()[0]
    assert (type(cache), cache.group_size, cache.bits) == (QuantizedKVCache, 32, bits)


@pytest.mark.parametrize("bits", BITS)
def test_rows_decode_as_they_do_alone(bits):
    runner = runner_of(llama_model(head_dim=32), bits)
    batch, prompts = batch_of(runner, PROMPTS), [list(prompt) for prompt in PROMPTS]
    assert runner.ragged
    assert all(isinstance(layer, QuantizedRowKVCache) for layer in batch.layers)
    for step in range(6):
        logits = runner.decode(mx.array([prompt[-1] for prompt in prompts]), batch)
        for row, prompt in enumerate(prompts):
            assert_close(logits[row], alone(runner, prompt), bits)
            prompt.append((5 * row + step) % 50)
        if step == 3:
            batch.keep([5, 1, 2, 4])
            prompts = [prompts[row] for row in (5, 1, 2, 4)]


@pytest.mark.parametrize("bits", BITS)
def test_several_tokens_at_once_are_single_steps(bits):
    runner = runner_of(llama_model(head_dim=32), bits)
    tokens = mx.array([[prompt[-1], 11, 12 + row] for row, prompt in enumerate(PROMPTS)])
    together = runner.decode(tokens, batch_of(runner, PROMPTS))
    batch = batch_of(runner, PROMPTS)
    for position in range(3):
        single = runner.decode(tokens[:, position], batch)
        for row in range(len(PROMPTS)):
            assert_close(together[row, position], single[row], bits)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_that_is_taken_out_goes_on_alone(bits):
    runner = runner_of(llama_model(head_dim=32), bits)
    batch = batch_of(runner, PROMPTS)
    runner.decode(mx.array([prompt[-1] for prompt in PROMPTS]), batch)
    for row, prompt in enumerate(PROMPTS):
        caches = batch.extract(row)
        assert [(type(c), c.offset, c.bits) for c in caches] == [(QuantizedKVCache, len(prompt), bits)] * 2
        logits = runner.model(mx.array([[33]]), cache=caches)[0, -1]
        assert_close(logits, alone(runner, [*prompt, 33]), bits)


@pytest.mark.parametrize("bits", BITS)
def test_slices_of_a_prompt_give_what_the_whole_gives(bits):
    runner = runner_of(llama_model(head_dim=32), bits)
    prompt = [(7 * i) % 50 for i in range(300)]
    whole, sliced = read(runner, prompt), runner.start()
    for start in range(0, 300, 77):
        runner.prefill(sliced, prompt[start : start + 77])
    for one, other in zip(arrays(whole[1])[1::3], arrays(sliced[1])[1::3], strict=True):
        assert mx.allclose(one[:, :, :300], other[:, :, :300], atol=1e-2).item()
    last = mx.array([[3]])
    assert_close(runner.model(last, cache=sliced)[0, -1], runner.model(last, cache=whole)[0, -1], bits)


@pytest.mark.parametrize(("bits", "share"), [(8, 9 / 32), (4, 5 / 32)])
def test_a_token_takes_its_bits_and_the_scales(bits, share):
    """Float32 elements, and for each 64 of them a scale and a bias in float32: one bit more an element."""
    plain, quantized = Runner(llama_model(head_dim=64)), Runner(llama_model(head_dim=64), kv_bits=bits)
    assert quantized.bytes_per_token == plain.bytes_per_token * share
    held = batch_of(quantized, [[1] * 200]).nbytes
    assert held == quantized.row_bytes(200)


def test_eight_bits_answer_as_full_precision_does(starter, device):
    model = load_network(starter, device, prepare=cpu.prepare).model
    tokenizer = Tokenizer.from_file(str(starter / "tokenizer.json"))
    prompts = [
        tokenizer.encode(text).ids for text in ("The capital of France is", "def add(a, b):\n", "Once upon a time")
    ]
    full, quantized = (greedy(Runner(model, kv_bits=bits), prompts, 8) for bits in (None, 8))
    agreeing = sum(a == b for one, other in zip(full, quantized, strict=True) for a, b in zip(one, other, strict=True))
    assert agreeing >= 0.9 * 3 * 8


def greedy(runner: Runner, prompts: list[list[int]], count: int) -> list[list[int]]:
    batch, tokens, answers = batch_of(runner, prompts), mx.array([prompt[-1] for prompt in prompts]), []
    for _ in range(count):
        tokens = mx.argmax(runner.decode(tokens, batch), axis=-1)
        answers.append(tokens.tolist())
    return [list(answer) for answer in zip(*answers, strict=True)]


def test_heads_that_32_does_not_divide_are_refused(model):
    with pytest.raises(ModelLoadError, match="16 elements"):
        Runner(model, kv_bits=8)


def test_a_network_without_plain_caches_is_refused():
    arguments = mamba.ModelArgs(
        model_type="mamba", vocab_size=50, hidden_size=32, intermediate_size=64, state_size=8, num_hidden_layers=2,
        conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=4,
    )  # fmt: skip
    with pytest.raises(ModelLoadError, match="plain KV cache") as caught:
        Runner(mamba.Model(arguments), kv_bits=8)
    assert "kv_bits" in caught.value.suggestions[0]


def test_a_network_whose_attention_cannot_read_them_is_refused():
    arguments = gpt_oss.ModelArgs(
        model_type="gpt_oss", num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, vocab_size=50,
        rms_norm_eps=1e-5, hidden_size=64, intermediate_size=64, head_dim=32, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    with pytest.raises(ModelLoadError, match="sinks"):
        Runner(gpt_oss.Model(arguments), kv_bits=4)


def llama_model(head_dim: int) -> nn.Module:
    mx.random.seed(1)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
            num_key_value_heads=2, head_dim=head_dim, rms_norm_eps=1e-5, vocab_size=50,
        )
    )  # fmt: skip
    assert len(make_prompt_cache(model)) == 2
    return model
