"""Real servers count tokens through a Jackfield."""

from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from peer import COUNTLESS, Peer

from serving import Server

MESSAGES: Any = [{"role": "user", "content": "Hello world"}]
HELLO = [19556, 905]


@pytest.fixture(autouse=True)
def knows_tokens(peer: Peer) -> None:
    if peer.kind in COUNTLESS:
        pytest.skip(COUNTLESS[peer.kind])


def post(front: Server, path: str, **body: Any) -> tuple[int, Any]:
    reply = httpx2.post(front.url + path, json={"model": "theirs", **body}, timeout=60)
    return reply.status_code, reply.json()


@pytest.mark.parametrize("name", ["prompt", "content"])
def test_a_text_by_either_name(front: Server, name: str) -> None:
    status, told = post(front, "/tokenize", **{name: "Hello world"})
    assert (status, told["tokens"], told["count"]) == (200, HELLO, 2)


def test_pieces_and_strings(front: Server, peer: Peer) -> None:
    status, told = post(front, "/tokenize", prompt="Hello world", with_pieces=True)
    if peer.kind == "llama.cpp":
        assert told["tokens"] == [{"id": 19556, "piece": "Hello"}, {"id": 905, "piece": " world"}]
    else:
        assert (status, told["error"]["param"]) == (400, "with_pieces")
    status, told = post(front, "/tokenize", prompt="Hello world", return_token_strs=True)
    if peer.kind == "vllm":
        assert told["token_strs"] == ["Hello", "Ġworld"]
    else:
        assert (status, told["error"]["param"]) == (400, "return_token_strs")


def test_a_conversation(front: Server, peer: Peer) -> None:
    status, told = post(front, "/tokenize", messages=MESSAGES)
    if peer.kind == "vllm":
        assert (status, told["count"]) == (200, 11)
    else:
        assert (status, told["error"]["param"]) == (400, "messages")
    with Anthropic(base_url=front.url, api_key="none", max_retries=0) as client:
        assert client.messages.count_tokens(model="theirs", messages=MESSAGES).input_tokens == 11


def test_tokens_become_text_again(front: Server) -> None:
    assert post(front, "/detokenize", tokens=HELLO) == (200, {"prompt": "Hello world", "content": "Hello world"})


def test_a_template(front: Server, peer: Peer) -> None:
    status, told = post(front, "/apply-template", messages=MESSAGES)
    if peer.kind == "llama.cpp":
        assert told["prompt"].endswith("Hello world<|im_end|>\n<|im_start|>assistant\n")
    else:
        assert (status, told["error"]["code"]) == (400, "unsupported_value")


def test_the_tokenizer(front: Server, peer: Peer) -> None:
    reply = httpx2.get(f"{front.url}/v1/tokenizer_info?model=theirs")
    if peer.kind == "vllm":
        told = reply.json()
        assert (told["model"], told["eos_token"], told["model_max_length"]) == ("theirs", "<|im_end|>", None)
        assert "im_start" in told["chat_template"]
    else:
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_value")
