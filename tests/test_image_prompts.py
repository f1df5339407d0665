"""Images in the engine: what a prompt with images gets is what mlx-lm's own way of reading it gives."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from jackfield.engine import room
from jackfield.engine.blocks import BLOCK_TOKENS, Block, chain, cut
from jackfield.engine.disk_format import decode, encode
from jackfield.engine.images import ImageEncoder
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.pace import PrefillPace
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import (
    CacheUse,
    GenerationRequest,
    PromptImage,
    PromptLogprobsEvent,
    SamplingParameters,
    StartEvent,
    TokenEvent,
)
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Scheduler
from jackfield.errors import MemoryPressureError
from vision_models import PLAIN, SLIDING, config, network, picture, processor, prompt_image

VOCABULARY = 96
PATCH_TOKEN, START, END = 7, 8, 9
COUNT = 12
"""Tokens of an answer."""


class CountingEncoder(ImageEncoder):
    """Remembers what it has encoded."""

    def __init__(self, model, own) -> None:
        super().__init__(model, own)
        self.encoded: list[bytes] = []

    def encode(self, image: PromptImage) -> mx.array:
        self.encoded.append(image.digest)
        return super().encode(image)


@pytest.fixture(scope="module", params=[SLIDING, PLAIN], ids=["sliding", "plain"])
def runner(request: pytest.FixtureRequest) -> Runner:
    settings = config(VOCABULARY, PATCH_TOKEN, request.param)
    model = network(settings)
    return Runner(model, images=CountingEncoder(model, processor(settings)))


@pytest.fixture(autouse=True)
def nothing_encoded(runner: Runner) -> None:
    runner.images.encoded.clear()


def scheduler(
    runner: Runner, *, slice_tokens: int = 2048, guard: MemoryGuard | None = None, cache_bytes: int = 1 << 30
) -> Scheduler:
    pace = PrefillPace(smallest=slice_tokens, smallest_shared=slice_tokens, largest=slice_tokens)
    sliding = not runner.fuses
    cache = PrefixCache(cache_bytes, stateful=sliding)
    return Scheduler(runner, cache, 8, guard or MemoryGuard(1 << 62), pace)


def words(count: int, seed: int = 0) -> list[int]:
    """Tokens of text."""
    return np.random.default_rng(seed).integers(10, VOCABULARY, count).tolist()


def with_images(*parts: list[int] | np.ndarray) -> tuple[list[int], tuple[PromptImage, ...]]:
    """A prompt of texts and pictures."""
    prompt: list[int] = []
    images: list[PromptImage] = []
    for part in parts:
        if isinstance(part, list):
            prompt += part
            continue
        prompt.append(START)
        images.append(prompt_image(len(prompt), part))
        prompt += [PATCH_TOKEN] * images[-1].count + [END]
    return prompt, tuple(images)


def asked(name: str, prompt: Sequence[int], images: tuple[PromptImage, ...] = (), **fields) -> GenerationRequest:
    fields = {"max_tokens": COUNT, "sampling": SamplingParameters(temperature=0), "top_logprobs": 0, **fields}
    return GenerationRequest(name, tuple(prompt), images=images, **fields)


def drain(engine: Scheduler, *requests: GenerationRequest) -> dict[str, list]:
    for one in requests:
        engine.submit(one)
    events: dict[str, list] = {one.id: [] for one in requests}
    while not engine.idle:
        for name, event in engine.step():
            events[name].append(event)
    return events


def ids(events: list) -> list[int]:
    return [event.id for event in events if isinstance(event, TokenEvent)]


def cache_use(events: list) -> CacheUse:
    return next(event.cache for event in events if isinstance(event, StartEvent))


def reference(runner: Runner, prompt: list[int], images: Sequence[PromptImage]) -> list[int]:
    """mlx-lm's way, greedily, everything computed anew for each token."""
    values = [runner.images._processor.preprocess_image(image.pixels)[0] for image in images]
    inputs = runner.model.embed_inputs(mx.array([prompt]), pixel_values=values or None)
    answer: list[int] = []
    for _ in range(COUNT):
        logits = runner.model(mx.array([[*prompt, *answer]]), input_embeddings=inputs)
        answer.append(int(mx.argmax(logits[0, -1]).item()))
        # Where the answer has the image's token, that stands for itself.
        inputs = mx.concatenate([inputs, runner.model.embed_inputs(mx.array([answer[-1:]]))], axis=1)
    return answer


LONG = with_images(words(40), picture(1, 4, 6), words(9, 1), picture(2, 2, 3), words(5, 2))
"""Two pictures, of 24 and 6 tokens."""


@pytest.mark.parametrize("slice_tokens", [1, 5, 16, 2048])
def test_a_prompt_with_images_gets_what_mlx_lm_gives_it(runner: Runner, slice_tokens: int) -> None:
    prompt, images = LONG
    events = drain(scheduler(runner, slice_tokens=slice_tokens), asked("a", prompt, images))
    assert ids(events["a"]) == reference(runner, prompt, images)
    assert runner.images.encoded == [image.digest for image in images], "each once"


def test_another_image_gets_another_answer(runner: Runner) -> None:
    answers = []
    for seed in (1, 2, 3):
        prompt, images = with_images(words(10), picture(seed), words(5))
        events = drain(scheduler(runner), asked("a", prompt, images))["a"]
        answers.append([event.logprob for event in events if isinstance(event, TokenEvent)])
        assert ids(events) == reference(runner, prompt, images)
    first, *others = answers
    assert all(abs(first[0] - other[0]) > 0.01 for other in others)


def test_images_and_plain_texts_in_one_batch(runner: Runner) -> None:
    prompt, images = LONG
    texts = [words(length, length) for length in (3, 50, 120)]
    requests = [asked(f"text {n}", text) for n, text in enumerate(texts)]
    requests.insert(1, asked("image", prompt, images))
    requests.append(asked("other", *with_images(picture(9), words(3))))
    events = drain(scheduler(runner, slice_tokens=7), *requests)
    for one in requests:
        assert ids(events[one.id]) == reference(runner, list(one.prompt), one.images), one.id


# ---------------------------------------------------------------------------------------- the prefix cache


def test_the_same_image_in_a_conversation_that_grows_is_read_once(runner: Runner) -> None:
    engine = scheduler(runner)
    prompt, images = with_images(words(40), picture(1, 4, 6), words(2 * BLOCK_TOKENS, 1))
    first = drain(engine, asked("a", prompt, images))["a"]
    assert cache_use(first).miss == "new"
    grown, new = with_images([*prompt, *ids(first), *words(40, 4)], picture(2), words(20))
    both = (*images, *new)
    second = drain(engine, asked("b", grown, both))["b"]
    assert cache_use(second).tokens >= images[0].end
    assert ids(second) == reference(runner, grown, both)
    assert runner.images.encoded == [image.digest for image in both], "each once"


def test_an_image_that_is_cached_in_whole_is_not_encoded_again(runner: Runner) -> None:
    engine, (prompt, images) = scheduler(runner), with_images(picture(5, 4, 6), words(2 * BLOCK_TOKENS))
    first = drain(engine, asked("a", prompt, images))["a"]
    again = drain(engine, asked("b", prompt, images))["b"]
    assert cache_use(again).tokens == (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert ids(again) == ids(first) == reference(runner, prompt, images)
    assert len(runner.images.encoded) == 1


def test_a_hit_that_ends_within_an_image_goes_on_there(runner: Runner) -> None:
    engine = scheduler(runner)
    prompt, images = with_images(words(20), picture(6, 5, 8), words(10))
    drain(engine, asked("a", prompt[: images[0].end + 1], images))
    again = drain(engine, asked("b", prompt, images))["b"]
    assert images[0].start < cache_use(again).tokens < images[0].end
    assert ids(again) == reference(runner, prompt, images)


def test_two_images_of_one_size_never_share(runner: Runner) -> None:
    engine = scheduler(runner)
    texts = words(BLOCK_TOKENS + 4), words(3 * BLOCK_TOKENS, 8)
    for seed in (1, 2, 3):
        prompt, images = with_images(texts[0], picture(seed, 4, 6), texts[1])
        events = drain(engine, asked("a", prompt, images))["a"]
        assert cache_use(events).tokens <= BLOCK_TOKENS, "of the text before it at most"
        assert ids(events) == reference(runner, prompt, images)
    assert cache_use(drain(engine, asked("b", prompt))["b"]).tokens <= BLOCK_TOKENS, "nor with no image at all"


def test_images_of_one_size_in_another_order_never_share(runner: Runner) -> None:
    engine, pictures = scheduler(runner), [picture(1, 2, 2), picture(2, 2, 2)]
    for order in ([0, 1], [1, 0], [0, 0], [1, 1]):
        prompt, images = with_images(*(pictures[n] for n in order), words(70))
        events = drain(engine, asked("a", prompt, images))["a"]
        assert cache_use(events).tokens == 0
        assert ids(events) == reference(runner, prompt, images)


def test_blocks_of_images_survive_as_files(runner: Runner) -> None:
    prompt, images = with_images(words(5), picture(1, 5, 8), words(30))
    caches = runner.start()
    runner.prefill(caches, prompt)
    first, second = chain(prompt, images)[:2]
    block = Block("kv", second, cut(caches, 0, BLOCK_TOKENS))
    record = decode(b"".join(encode(block.record(), "model")), block.key, "model")
    assert (record.link, record.link.parent) == (second, first.digest)


def test_digests_stand_where_their_images_do() -> None:
    tokens = [PATCH_TOKEN] * (4 * BLOCK_TOKENS)
    plain = chain(tokens)
    image = prompt_image(40, picture(1, 5, 8))  # to 80: the second and third block
    links = chain(tokens, [image])
    assert links[0] == plain[0]
    assert [link.tokens.endswith(image.digest) for link in links] == [False, True, True, False]
    assert links[3].tokens == plain[3].tokens
    assert links[3].digest != plain[3].digest
    edge = chain(tokens, [prompt_image(BLOCK_TOKENS, picture(1, 4, 8))])
    assert [len(link.tokens) for link in edge] == [128, 160, 128, 128]


# ---------------------------------------------------------------------------------------- memory and failures


def test_who_has_to_make_room_reads_its_image_again(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GROWTH", 1)
    requests = [asked(str(n), *with_images(picture(n, 4, 6), words(30, n)), max_tokens=230) for n in range(3)]
    alone = {one.id: ids(drain(scheduler(runner, cache_bytes=0), one)[one.id]) for one in requests}
    runner.images.encoded.clear()
    # Room for three at first, not for three that have outgrown the smallest rows.
    tight = scheduler(runner, guard=MemoryGuard(runner.row_bytes(1) * 4), cache_bytes=0)
    events = drain(tight, *requests)
    assert {name: ids(own) for name, own in events.items()} == alone
    assert tight.statistics.preemptions > 0
    assert len(runner.images.encoded) == len(requests) + tight.statistics.preemptions


def test_who_makes_room_within_an_image_may_begin_again_within_another(runner: Runner) -> None:
    prompt, images = with_images(words(20), picture(1, 5, 8), words(9), picture(2, 5, 8), words(9))
    engine = scheduler(runner, slice_tokens=16)
    drain(engine, asked("before", prompt[: images[0].end + 1], images[:1]))
    engine.submit(asked("a", prompt, images))
    events: list = []
    while not engine.reading or engine.reading[0].processed <= images[1].start:
        events += [event for _, event in engine.step()]
    assert images[0].start < cache_use(events).tokens < images[0].end
    assert engine.reading[0].encoded is not None
    engine._preempt(engine.reading[0])
    again = [event for _ in iter(lambda: engine.idle, True) for _, event in engine.step()]
    assert ids(again) == reference(runner, prompt, images)
    assert runner.images.encoded == [images[n].digest for n in (0, 0, 1, 0, 1)]


def test_who_is_cancelled_within_an_image_leaves_what_was_read_of_it(runner: Runner) -> None:
    prompt, images = with_images(words(20), picture(6, 5, 8), words(40))
    engine = scheduler(runner, slice_tokens=16)
    engine.submit(asked("a", prompt, images))
    while not engine.reading or engine.reading[0].processed < images[0].start + 16:
        engine.step()
    assert engine.reading[0].processed < images[0].end
    engine.cancel(frozenset({"a"}))
    assert engine.idle
    again = drain(engine, asked("b", prompt, images))["b"]
    assert ids(again) == reference(runner, prompt, images)
    if runner.fuses:
        assert cache_use(again).tokens == images[0].start // BLOCK_TOKENS * BLOCK_TOKENS + BLOCK_TOKENS
    other, of_other = with_images(words(20), picture(7, 5, 8), words(40))
    assert ids(drain(engine, asked("c", other, of_other))["c"]) == reference(runner, other, of_other)


def test_after_a_failure_images_are_read_anew(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, images = LONG
    engine = scheduler(runner)
    with monkeypatch.context() as broken:
        broken.setattr(runner.images, "encode", lambda _: 1 / 0)
        engine.submit(asked("a", prompt, images))
        with pytest.raises(ZeroDivisionError):
            while not engine.idle:
                engine.step()
    engine.clear()
    events = drain(engine, asked("b", prompt, images))["b"]
    assert cache_use(events).tokens == 0
    assert ids(events) == reference(runner, prompt, images)


def test_embeddings_of_images_are_counted(runner: Runner) -> None:
    prompt, images = with_images(picture(1, 20, 20), words(3))
    need = runner.lone_row_bytes(len(prompt) + COUNT)
    room = MemoryGuard(need + 400 * runner.image_token_bytes)
    assert ids(drain(scheduler(runner, guard=room), asked("a", prompt, images))["a"])
    short = MemoryGuard(need + 400 * runner.image_token_bytes - 1)
    (end,) = drain(scheduler(runner, guard=short), asked("a", prompt, images))["a"]
    assert isinstance(end.error, MemoryPressureError)


def test_scores_of_a_prompt_with_images(runner: Runner) -> None:
    prompt, images = with_images(words(6), picture(1), words(9))
    (event,) = [
        event
        for event in drain(scheduler(runner), asked("a", prompt, images, prompt_logprobs=True))["a"]
        if isinstance(event, PromptLogprobsEvent)
    ]
    values = [runner.images._processor.preprocess_image(image.pixels)[0] for image in images]
    logits = runner.model(mx.array([prompt]), pixel_values=values)[0].astype(mx.float32)
    expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    found = [token.logprob for token in event.tokens[1:]]
    assert found == pytest.approx([expected[n, token].item() for n, token in enumerate(prompt[1:])], abs=0.05)


def test_an_image_that_does_not_become_its_tokens_is_an_error(runner: Runner) -> None:
    image = prompt_image(1, picture(1))
    wrong = PromptImage(1, image.count + 1, image.pixels, image.digest)
    with pytest.raises(ValueError, match="7 tokens became 6 embeddings"):
        runner.encode(wrong)


def test_a_model_that_reads_no_images_says_so(runner: Runner) -> None:
    with pytest.raises(ValueError, match="reads no images"):
        Runner(runner.model).encode(prompt_image(1, picture(1)))
