"""``/v1/embeddings`` as clients meet it: OpenAI's SDK against the real starter and a Qwen3-Embedding checkpoint."""

import base64
import struct
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import mlx.core as mx
import numpy as np
import openai
import pytest
from openai import OpenAI

from jackfield.hooks import Identity, JsonObject, RequestInfo, hookimpl
from jackfield.models.device import Device
from jackfield.models.embedding import EmbeddingSpec
from jackfield.models.loading import load_network
from jackfield.models.tokenizer import Tokenizer
from jackfield.testing import StartServer
from serving import Server, serve

TEXTS = [
    "The cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "The stock market fell sharply today.",
    "Shares lost value on Wall Street.",
    "def add(a, b): return a + b",
    "function sum(x, y) { return x + y; }",
]
LONG = "The quick brown fox jumps over the lazy dog, and nobody knows why. " * 8

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def sdk(server: Server, *, strict: bool = False) -> OpenAI:
    """``strict`` takes numbers alone: the SDK checks answers before it decodes them."""
    return OpenAI(base_url=server.api, api_key="any", max_retries=0, _strict_response_validation=strict)


@pytest.fixture(scope="module")
def client(starter_server: Server) -> Iterator[OpenAI]:
    with sdk(starter_server) as client:
        yield client


@pytest.fixture(scope="module")
def embedder_server(tiny_embedder: Path) -> Iterator[Server]:
    with serve(tiny_embedder) as server:
        yield server


@pytest.fixture(scope="module")
def embedder(embedder_server: Server) -> Iterator[OpenAI]:
    with sdk(embedder_server) as client:
        yield client


def embed(client: OpenAI, texts: Any, **fields: Any) -> Vectors:
    answer = client.embeddings.create(**{"model": "starter", "input": texts, **fields})
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data], np.float32)


def states(folder: Path, device: Device, tokens: Sequence[int]) -> Vectors:
    """The last hidden states of a text, without the engine."""
    network: Any = load_network(folder, device).model
    return np.array(network.model(mx.array([list(tokens)]))[0])


def unit(vector: Vectors) -> Vectors:
    found: Vectors = vector / np.linalg.norm(vector)
    return found


# ---------------------------------------------------------------------------------------- the starter


def test_the_sdks_default_and_plain_numbers_are_the_same(client: OpenAI, starter_server: Server) -> None:
    vectors = embed(client, TEXTS)  # the SDK asks for base64, and decodes it
    assert vectors.shape == (len(TEXTS), 576)
    with sdk(starter_server, strict=True) as strict:
        assert np.allclose(vectors, embed(strict, TEXTS, encoding_format="float"), atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_base64_is_float32_little_endian(starter_server: Server) -> None:
    body = {"model": "starter", "input": "Hi"}
    url = f"{starter_server.api}/embeddings"
    plain = httpx2.post(url, json=body, timeout=60).json()["data"][0]["embedding"]
    encoded = httpx2.post(url, json={**body, "encoding_format": "base64"}, timeout=60).json()["data"][0]["embedding"]
    assert list(struct.unpack("<576f", base64.b64decode(encoded, validate=True))) == plain


def test_the_same_text_has_the_same_vector_in_any_company(client: OpenAI) -> None:
    together = embed(client, [*TEXTS, LONG, TEXTS[0]])
    assert np.allclose(together[0], together[-1], atol=1e-5)
    for text, vector in zip([*TEXTS, LONG], together, strict=False):
        assert np.allclose(embed(client, text)[0], vector, atol=1e-5)


def test_texts_on_one_subject_are_nearest_to_each_other(client: OpenAI) -> None:
    vectors = embed(client, TEXTS)
    likeness = vectors @ vectors.T - 2 * np.eye(len(TEXTS))
    assert likeness.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_a_chat_models_vector_is_the_mean_of_its_last_hidden_states(
    client: OpenAI, starter: Path, device: Device
) -> None:
    expected = states(starter, device, Tokenizer(starter).encode(TEXTS[0])).mean(axis=0)
    assert np.allclose(embed(client, TEXTS[0])[0], unit(expected), atol=1e-4)


def test_token_ids_are_texts_too(client: OpenAI, starter: Path) -> None:
    first, second = map(Tokenizer(starter).encode, TEXTS[:2])
    vectors = embed(client, TEXTS[:2])
    assert np.allclose(embed(client, first)[0], vectors[0], atol=1e-5)
    assert np.allclose(embed(client, [first, second]), vectors, atol=1e-5)


def test_tokens_are_counted(client: OpenAI, starter: Path) -> None:
    usage = client.embeddings.create(model="starter", input=TEXTS).usage
    assert usage.prompt_tokens == sum(len(tokens) for tokens in map(Tokenizer(starter).encode, TEXTS))
    assert usage.total_tokens == usage.prompt_tokens


def test_all_dimensions_may_be_asked_for_but_no_fewer(client: OpenAI) -> None:
    assert embed(client, "Hi", dimensions=576, user="me").shape == (1, 576)
    with pytest.raises(openai.BadRequestError) as caught:
        embed(client, "Hi", dimensions=256)
    assert caught.value.param == "dimensions"
    assert caught.value.code == "unsupported_value"
    assert any("is_matryoshka" in hint for hint in caught.value.body["suggestions"])  # type: ignore[index]


def test_a_stream_goes_on_while_long_texts_are_read(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 1 to 1000."}]
    with client.chat.completions.create(
        model="starter", messages=messages, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
    ) as chunks:  # type: ignore[call-overload]
        next(chunk for chunk in chunks if chunk.choices[0].delta.content)
        found: list[Vectors] = []
        thread = threading.Thread(target=lambda: found.append(embed(client, [LONG, *TEXTS])))
        thread.start()
        beside = 0
        for chunk in chunks:
            beside += thread.is_alive()
            if not thread.is_alive():
                break
            assert chunk.choices[0].finish_reason is None
    thread.join()
    assert found[0].shape == (7, 576)
    # LONG alone has 120 tokens, and a slice beside a stream is much shorter.
    assert beside > 4


# ---------------------------------------------------------------------------------------- Qwen3-Embedding


@pytest.fixture(scope="module")
def ask(embedder: OpenAI, embedder_server: Server) -> partial[Vectors]:
    return partial(embed, embedder, model=embedder_server.model)


def test_an_official_checkpoint_is_served(embedder_server: Server) -> None:
    assert embedder_server.model == "Qwen3-Embedding-tiny"
    assert any("what it writes means nothing" in line for line in embedder_server.log)


def test_its_vector_is_the_state_of_the_token_that_ends_a_text(
    ask: partial[Vectors], tiny_embedder: Path, device: Device
) -> None:
    tokenizer = Tokenizer(tiny_embedder)
    tokens = tokenizer.encode(TEXTS[0])
    assert tokens[-1] == tokenizer.special_token("<|endoftext|>")
    expected = unit(states(tiny_embedder, device, tokens)[-1])
    assert np.allclose(ask(TEXTS[0])[0], expected, atol=1e-5)
    assert np.allclose(ask([TEXTS[1], TEXTS[0], LONG])[1], expected, atol=1e-5)
    # Token ids are taken as they are.
    assert np.allclose(ask(tokens)[0], expected, atol=1e-5)
    assert not np.allclose(ask(tokens[:-1])[0], expected, atol=1e-2)


@pytest.mark.parametrize("dimensions", [32, 48, 64])
def test_its_vectors_can_be_cut(ask: partial[Vectors], dimensions: int) -> None:
    whole, cut = ask(TEXTS), ask(TEXTS, dimensions=dimensions)
    assert cut.shape == (len(TEXTS), dimensions)
    for one, short in zip(whole, cut, strict=True):
        assert np.allclose(short, unit(one[:dimensions]), atol=1e-6)


@pytest.mark.parametrize("dimensions", [1, 31, 65, 4096])
def test_but_not_to_any_size(ask: partial[Vectors], dimensions: int) -> None:
    with pytest.raises(openai.BadRequestError, match=f"cannot be cut to {dimensions}") as caught:
        ask("Hi", dimensions=dimensions)
    assert caught.value.body["suggestions"] == ["Leave out 'dimensions'.", "Send 32 to 64."]  # type: ignore[index]


def test_more_texts_than_one_batch_holds_come_back_in_order(ask: partial[Vectors]) -> None:
    random = np.random.default_rng(0)
    lists = [random.integers(10, 40_000, random.integers(1, 300)).tolist() for _ in range(100)]
    assert sum(map(len, lists)) > 3 * 4096
    vectors = ask(lists)
    for place in (0, 17, 50, 99):
        assert np.allclose(vectors[place], ask(lists[place])[0], atol=1e-5)


def test_a_text_may_be_as_long_as_the_context_and_no_longer(ask: partial[Vectors], embedder_server: Server) -> None:
    assert ask([5] * 4096).shape == (1, 64)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens") as caught:
        ask([[1, 2], [5] * 4097])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "empty_string"),
        ({"input": []}, "input", "empty_array"),
        ({"input": ["a", ""]}, "input.1", "empty_string"),
        pytest.param({"input": ["a"] * 2049}, "input", "array_above_max_length", id="2049 texts"),
        ({"input": [[1], []]}, "input.1", "empty_array"),
        ({"input": ["a", 1]}, "input.1", "invalid_type"),
        ({"input": {"text": "a"}}, "input", "invalid_type"),
        ({"input": [10**6]}, "input", "invalid_value"),
        ({"input": [-1]}, "input.0", "integer_below_min_value"),
        ({"input": "a", "encoding_format": "float16"}, "encoding_format", "invalid_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"input": "a", "stream": True}, "stream", "unknown_parameter"),
        ({"input": "a", "timeout": 0}, "timeout", "decimal_below_min_value"),
    ],
    ids=str,
)
def test_refusals(embedder_server: Server, fields: dict[str, Any], param: str, code: str) -> None:
    body = {"model": embedder_server.model, **fields}
    response = httpx2.post(f"{embedder_server.api}/embeddings", json=body, timeout=60)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_an_unknown_model(embedder: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        embed(embedder, "Hi", model="gpt-99")
    assert caught.value.code == "model_not_found"


def test_a_request_whose_time_is_over(ask: partial[Vectors]) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(["Hi"] * 100, extra_body={"timeout": 1e-6})
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"


def test_texts_are_not_logged(embedder_server: Server, ask: partial[Vectors]) -> None:
    ask("a secret that is nobody's business", user="me")
    said = "".join(embedder_server.log)
    assert "secret" not in said
    assert said.count("Clients send 'user'") == 1


def test_what_is_read_counts_as_prompts(embedder_server: Server, ask: partial[Vectors]) -> None:
    before = counted(embedder_server)
    ask([[5] * 100, [6] * 50])
    assert counted(embedder_server) == before + 150


def counted(server: Server) -> float:
    series = httpx2.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    (line,) = [line for line in series if line.startswith("jackfield_prompt_tokens_total{")]
    return float(line.split()[-1])


# ---------------------------------------------------------------------------------------- plugins


class Doorman:
    """Lets people in, some before others, and looks into what they send."""

    @hookimpl
    def authenticate(self, request: Any) -> Identity:
        return Identity("somebody", frozenset({request.headers["authorization"]}), priority=7)

    @hookimpl
    def transform_request(self, body: JsonObject, request: RequestInfo) -> JsonObject:
        assert request.endpoint == "/embeddings"
        return {**body, "input": [f"Query: {text}" for text in body["input"]]}


def test_plugins_have_their_say(jackfield_server: StartServer) -> None:
    server = jackfield_server(("doorman", Doorman()))
    body = {"model": "scripted", "input": ["a", "abc"], "priority": 2}
    assert server.post("/v1/embeddings", body, headers={"Authorization": "metrics"}).status == 403
    reply = server.post("/v1/embeddings", body, headers={"Authorization": "inference"})
    assert [one["embedding"].index(1.0) for one in reply.json["data"]] == [8 % 8, 10 % 8]
    (asked,) = server.engine.embedded
    assert (asked.priority, asked.pooling, asked.deadline) == (9, "mean", None)
    assert server.record("received").data["inputs"] == 2
    assert server.record("backend").data["backend"] == "mlx"
    told = server.record("completed", reply.request_id)
    assert told.request.model == "scripted"
    assert (told.data["prompt_tokens"], told.data["completion_tokens"], told.data["inputs"]) == (18, 0, 2)
    assert server.event("completed").data["finish_reasons"] == []


def test_texts_get_the_end_that_their_model_wants(
    jackfield_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jackfield.testing.server.EmbeddingSpec", lambda width: EmbeddingSpec(width, "last", end=257))
    server = jackfield_server()
    for texts in (["ab", "ab<|im_end|>"], [[1, 2], [257]]):
        assert server.post("/v1/embeddings", {"model": "scripted", "input": texts}).status == 200
    written, given = (one.inputs for one in server.engine.embedded)
    assert [tokens[2:] for tokens in written] == [(257,), (257,)]
    assert sorted(given) == [(1, 2), (257,)]  # token ids are taken as they are


def test_plugins_are_told_of_failures(jackfield_server: StartServer) -> None:
    server = jackfield_server()
    reply = server.post("/embeddings", {"model": "scripted", "input": "Hi", "dimensions": 3})
    assert reply.status == 400
    assert server.record("failed", reply.request_id).data["code"] == "unsupported_value"


def test_a_model_that_makes_none_says_so(jackfield_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jackfield.testing.server.EmbeddingSpec", lambda width: EmbeddingSpec(obstacle="it is shy"))
    reply = jackfield_server().post("/v1/embeddings", {"model": "scripted", "input": "Hi"})
    assert reply.status == 400
    assert reply.json["error"]["message"] == "This model makes no embeddings: it is shy."
    assert reply.json["error"]["param"] == "model"
