"""Images through the front door: OpenAI's SDK against a small random model that reads them."""

import asyncio
import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import mlx.core as mx
import numpy as np
import pytest
from anthropic import Anthropic
from mlx_lm.processors import load_processor
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletion
from PIL import Image

from jackfield.compression import PromptCounter
from jackfield.errors import UnsupportedError
from jackfield.models.loading import load_network
from jackfield.models.service import _image_reader
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.settings import Settings
from jackfield.vision import decoding
from jackfield.vision.processor import ImageProcessor
from jackfield.vision.reader import ImageLimits, ImageReader
from serving import Server, serve
from test_vision import asked, file, png_of, url
from vision_models import TEMPLATE, config, copy_of, picture, processor

PICTURES = [url(file(picture(seed, 5, 6))) for seed in range(3)]
"""Of one size: 30 tokens each."""


@pytest.fixture(scope="module")
def server(vision_model: Path) -> Iterator[Server]:
    limits = {"MAX_IMAGES": "4", "MAX_IMAGE_PIXELS": "1000000", "MAX_IMAGE_TOKENS": "100"}
    environment = {f"JACKFIELD_{name}": value for name, value in limits.items()}
    with serve(vision_model, "--context-length", "512", **environment) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.api, api_key="any", max_retries=0) as client:
        yield client


def content(*parts: str) -> list[dict[str, Any]]:
    """Texts, and URLs of images."""
    return [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith(("data:", "http", "file"))
        else {"type": "text", "text": part}
        for part in parts
    ]


def ask(client: OpenAI, *parts: str, before: list[dict[str, Any]] | None = None, **fields: Any) -> ChatCompletion:
    messages = [*(before or []), {"role": "user", "content": content(*parts)}]
    fields = {"temperature": 0, "max_tokens": 8, "logprobs": True, **fields}
    return client.chat.completions.create(model=client.models.list().data[0].id, messages=messages, **fields)


def logprobs(answer: ChatCompletion) -> list[float]:
    return [token.logprob for token in answer.choices[0].logprobs.content]


# ---------------------------------------------------------------------------------------- answers


def test_an_answer_is_what_mlx_lm_computes(client: OpenAI, vision_model: Path, device) -> None:
    answer = ask(client, "What is ", PICTURES[0], " and ", PICTURES[1], "?")
    network = load_network(vision_model, device)
    own = load_processor(network.model, network.config)
    tokenizer = Tokenizer(vision_model)
    said = "<|im_start|>user\nWhat is <|patch|> and <|patch|>?<|im_end|>\n<|im_start|>assistant\n"
    text, values = own(said, images=[picture(0, 5, 6), picture(1, 5, 6)])
    tokens = tokenizer.encode(text, special=False)
    assert answer.usage.prompt_tokens == len(tokens)
    inputs = network.model.embed_inputs(mx.array([tokens]), pixel_values=values)
    for found in answer.choices[0].logprobs.content:
        logits = network.model(mx.array([tokens]), input_embeddings=inputs)[0, -1].astype(mx.float32)
        token = int(mx.argmax(logits).item())
        assert tokenizer.token_bytes(token) == bytes(found.bytes)
        assert found.logprob == pytest.approx((logits[token] - mx.logsumexp(logits)).item(), abs=0.02)
        tokens.append(token)
        inputs = mx.concatenate([inputs, network.model.embed_inputs(mx.array([[token]]))], axis=1)


def test_the_same_image_the_same_answer_another_image_another(client: OpenAI) -> None:
    first, same, *others = (logprobs(ask(client, "Describe it. ", PICTURES[n])) for n in (0, 0, 1, 2))
    assert same == pytest.approx(first, abs=0.02)
    assert all(np.abs(np.subtract(other, first)).max() > 0.1 for other in others)


def test_it_streams(client: OpenAI) -> None:
    whole = ask(client, "Describe it. ", PICTURES[0])
    stream = ask(client, "Describe it. ", PICTURES[0], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


def test_responses_see_the_same(client: OpenAI) -> None:
    def respond(*items: Any, **fields: Any) -> Any:
        model = client.models.list().data[0].id
        return client.responses.create(model=model, input=items, temperature=0, max_output_tokens=8, **fields)

    def said(text: str, image: str) -> dict[str, Any]:
        parts = [
            {"type": "input_text", "text": text},
            {"type": "input_image", "image_url": image, "detail": "original"},
        ]
        return {"role": "user", "content": parts}

    response = respond(said("Describe it. ", PICTURES[0]))
    whole = ask(client, "Describe it. ", PICTURES[0])
    assert response.output_text == whole.choices[0].message.content
    assert response.usage.input_tokens == whole.usage.prompt_tokens
    cut = respond(*[said("word " * 200, image) for image in PICTURES], truncation="auto")
    assert 400 < cut.usage.input_tokens <= 504
    with pytest.raises(BadRequestError) as caught:
        respond(said("Look: ", "data:image/png;base64,!"))
    assert (caught.value.param, caught.value.code) == ("input.0.content.1", "invalid_base64_image")


def test_messages_see_the_same(server: Server, client: OpenAI) -> None:
    def block(image: str) -> dict[str, Any]:
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image.split(",")[1]}}

    described = {"role": "user", "content": [{"type": "text", "text": "Describe it. "}, block(PICTURES[0])]}
    call = {"type": "tool_use", "id": "call_1", "name": "look", "input": {}}
    seen = {"type": "tool_result", "tool_use_id": "call_1", "content": [block(PICTURES[1])]}
    looked = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [seen]}]
    with Anthropic(base_url=server.url, api_key="any", max_retries=0) as messages:
        model = client.models.list().data[0].id
        fields = {"model": model, "max_tokens": 8, "extra_body": {"temperature": 0}}
        said = messages.messages.create(messages=[described], **fields)
        whole = ask(client, "Describe it. ", PICTURES[0])
        assert said.content[0].text == whole.choices[0].message.content
        for conversation in ([described], [described, *looked]):
            usage = messages.messages.create(messages=conversation, **fields).usage
            counted = messages.messages.count_tokens(model=model, messages=conversation).input_tokens
            assert counted == usage.input_tokens + usage.cache_read_input_tokens > 30
        with pytest.raises(anthropic.BadRequestError) as caught:
            seen["content"].insert(0, block("data:image/png;base64,!!!!"))
            messages.messages.create(messages=[described, *looked], **fields)
    assert caught.value.error_code == "invalid_base64_image"
    assert caught.value.body["error"]["param"] == "messages.2.content.0.content.0"


def test_a_conversation_goes_on_from_the_cache(client: OpenAI) -> None:
    before = [{"role": "user", "content": content("Look at this: " + "well, " * 40, PICTURES[2], " what is it?" * 20)}]
    first = ask(client, "So?", before=before)
    before.append({"role": "user", "content": "So?"})
    before.append({"role": "assistant", "content": first.choices[0].message.content})
    second = ask(client, "And this? ", PICTURES[0], before=before)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= 90
    other = [{"role": "user", "content": content("Look at this: " + "well, " * 40, PICTURES[1], " what is it?" * 20)}]
    third = ask(client, "So?", before=other)
    assert third.usage.prompt_tokens_details.cached_tokens < 90, "the text before the image at most"


def test_several_choices_and_texts_beside(client: OpenAI) -> None:
    answer = ask(client, PICTURES[0], n=3, max_tokens=4)
    assert len({choice.message.content for choice in answer.choices}) == 1
    assert ask(client, "Just text.").usage.prompt_tokens < 30


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (url(png_of(1001, 1000)), "image_too_large"),
        ("data:image/png;base64,iVBORw0KGgo=", "unsupported_image_media_type"),  # LangChain's own example
        ("data:image/png;base64,!!!!", "invalid_base64_image"),
        ("https://example.com/image.png", "invalid_image_url"),
        ("http://127.0.0.1/image.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
    ],
)
def test_what_cannot_be_read_is_a_400(client: OpenAI, sent: str, code: str) -> None:
    for stream in (False, True):
        with pytest.raises(BadRequestError) as caught:
            ask(client, "What is it?", sent, stream=stream)
        assert (caught.value.code, caught.value.param) == (code, "messages.0.content.1")
        assert caught.value.body["suggestions"]


def test_too_many_images_are_a_400(client: OpenAI) -> None:
    assert ask(client, *PICTURES, PICTURES[0])
    with pytest.raises(BadRequestError, match="may have 4 images") as caught:
        ask(client, *PICTURES, *PICTURES)
    assert caught.value.param == "messages.0.content.4"


def test_images_that_do_not_fit_the_context_are_a_400(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, *(url(file(picture(seed, 64, 64))) for seed in range(4)), "word " * 200)
    assert caught.value.code == "context_length_exceeded"


def test_sound_and_files_are_still_refused(client: OpenAI) -> None:
    part = {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}
    with pytest.raises(BadRequestError, match="Text and images alone") as caught:
        client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": [*content(PICTURES[0]), part]}],
        )
    assert caught.value.param == "messages.0.content.1"


def test_the_placeholder_in_a_text_is_a_400_only_beside_images(client: OpenAI) -> None:
    assert ask(client, "<|patch|>")
    with pytest.raises(BadRequestError, match="stands for an image") as caught:
        ask(client, "<|patch|>", PICTURES[0])
    assert caught.value.param == "messages"


def test_the_server_goes_on_after_all_that(client: OpenAI, server: Server) -> None:
    assert ask(client, PICTURES[0]).choices[0].finish_reason
    assert not [line for line in server.log if "Traceback" in line or line.startswith("ERROR")]


def test_the_start_says_what_images_may_have(server: Server) -> None:
    assert any("Images: of up to 100 tokens each" in line for line in server.log)


def test_templates_show_their_placeholder(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": content("What is ", PICTURES[0])}]}
    answer = httpx2.post(f"{server.url}/apply-template", json=body).json()
    assert "What is <|patch|><|im_end|>" in answer["prompt"]
    refused = httpx2.post(f"{server.url}/tokenize", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages.0.content.1"


# ---------------------------------------------------------------------------------------- servers set otherwise


def test_remote_images_are_never_fetched_from_here(vision_model: Path) -> None:
    environment = {"JACKFIELD_ALLOW_REMOTE_IMAGES": "true", "JACKFIELD_MAX_IMAGE_TOKENS": "10"}
    with (
        serve(vision_model, **environment) as server,
        OpenAI(base_url=server.api, api_key="any", max_retries=0) as client,
    ):
        for host in ("127.0.0.1", "localhost", "[::1]", "2130706433"):
            with pytest.raises(BadRequestError, match="not public") as caught:
                ask(client, f"http://{host}:{server.url.rpartition(':')[2]}/health")
            assert (caught.value.code, caught.value.param) == ("invalid_image_url", "messages.0.content.0")
        assert any("Images: of up to 10 tokens each" in line for line in server.log)
        text = ask(client, "a").usage.prompt_tokens
        assert ask(client, "a", PICTURES[0]).usage.prompt_tokens in range(text + 5, text + 13)


def test_a_tokenizer_without_the_images_tokens_refuses_them(vision_model: Path, starter: Path, tmp_path: Path) -> None:
    folder = copy_of(vision_model, tmp_path)
    (folder / "tokenizer.json").write_text((starter / "tokenizer.json").read_text())
    with serve(folder) as server, OpenAI(base_url=server.api, api_key="any", max_retries=0) as client:
        assert any("Images are refused" in line and "<|patch|>" in line for line in server.log)
        with pytest.raises(BadRequestError, match="Text alone"):
            ask(client, PICTURES[0])


def test_the_start_says_when_pillow_is_missing(vision_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "available", lambda: False)
    told: list[str] = []
    assert _image_reader(_processor(), Tokenizer(vision_model), Settings(), told.append) is not None
    assert "pip install 'jackfield[vision]'" in told[0]


# ---------------------------------------------------------------------------------------- prompts


@pytest.fixture(scope="module")
def tokenizer(vision_model: Path) -> Tokenizer:
    return Tokenizer(vision_model)


def rendered(tokenizer: Tokenizer, messages: list[dict[str, Any]], **fields: Any) -> str:
    """The prompt as text, with one token for each image."""
    reader = ImageReader(_processor(1), ImageLimits())
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": messages, **fields})
    pictures = asyncio.run(reader.read(request))
    tokens, images = chat_prompt(request, tokenizer, pictures)
    assert len(images) == len(list(request.images()))
    return tokenizer.decode(tokens, special=True).replace("<|image_start|><|patch|><|image_end|>", "[image]")


def _processor(tokens: int | None = None) -> ImageProcessor:
    return ImageProcessor(processor(config(96, 7)), tokens)


def test_images_stay_between_their_texts(tokenizer: Tokenizer) -> None:
    message = {"role": "user", "content": content("a", PICTURES[0], "b", "c", PICTURES[1])}
    assert "user\na[image]bc[image]<|im_end|>" in rendered(tokenizer, [message])


def test_images_in_what_is_merged(tokenizer: Tokenizer) -> None:
    leading = [
        {"role": "system", "content": "one"},
        {"role": "system", "content": content("two", PICTURES[0])},
        {"role": "user", "content": "hi"},
    ]
    assert "system\none\n\ntwo[image]<|im_end|>" in rendered(tokenizer, leading)


def test_images_beside_tools_that_the_template_does_not_know(tokenizer: Tokenizer) -> None:
    assert "tool" not in TEMPLATE
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": content("be", PICTURES[0])},
        {"role": "user", "content": content(PICTURES[1], "look")},
        {"role": "assistant", "content": content("I do", PICTURES[2]), "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": content("seen: ", PICTURES[0])},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    text = rendered(tokenizer, messages, tools=tools)
    assert "system\nbe[image]\n\nYou can call functions" in text
    assert "user\n[image]look<|im_end|>" in text
    assert 'assistant\nI do[image]\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|im_end|>' in text
    assert "user\n<tool_response>\nseen: [image]\n</tool_response><|im_end|>" in text


def test_refusals_of_the_past_are_texts_beside_images(tokenizer: Tokenizer) -> None:
    said = {"role": "assistant", "content": [*content(PICTURES[0]), {"type": "refusal", "refusal": "No."}]}
    assert "assistant\n[image]No.<|im_end|>" in rendered(tokenizer, [{"role": "user", "content": "a"}, said])


def test_plugins_count_images_with_what_is_left(tokenizer: Tokenizer) -> None:
    request = asked(*PICTURES[:2])
    pictures = asyncio.run(ImageReader(_processor(), ImageLimits()).read(request))
    document = json.loads(request.model_dump_json(exclude_unset=True))
    counter = PromptCounter(document, tokenizer, pictures)
    whole = counter.count(document["messages"])
    assert whole == len(chat_prompt(request, tokenizer, pictures).tokens)
    shorter = [{"role": "user", "content": document["messages"][0]["content"][:2]}]
    assert whole - counter.count(shorter) == 30 + 2


def test_a_model_without_eyes_names_those_that_have_some(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnsupportedError, match="Text alone") as caught:
        chat_prompt(asked(PICTURES[0]), tokenizer)
    assert "muse_spark" in caught.value.suggestions[1]


def test_images_of_base64_are_what_was_sent() -> None:
    image = Image.open(BytesIO(base64.b64decode(PICTURES[0].partition(",")[2])))
    assert np.array_equal(np.asarray(image), picture(0, 5, 6))
