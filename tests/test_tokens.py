"""Text, conversations and tokens, in the words of vLLM's clients and of llama.cpp's."""

import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import jinja2
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from contract import validator
from jackfield.errors import InvalidRequestError
from jackfield.hooks import Identity, hookimpl
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.testing import JackfieldServer, StartServer, serving
from model_fixtures import TOKENIZER_FILES
from scripted_engine import Stage, staged
from serving import Server

TEXT = "The capital of France is Paris."
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object", "properties": {}}}}
BEGIN, END = "<|im_start|>", "<|endoftext|>"
PATIENCE = 5.0
"""Seconds after which something has not happened."""


@pytest.fixture(scope="module")
def tokenizer(starter: Path) -> Tokenizer:
    return Tokenizer(starter)


@pytest.fixture(scope="module")
def stage(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server whose tokenizer puts a token before each text and one behind it."""
    folder = tmp_path_factory.mktemp("ends")
    for name in (*TOKENIZER_FILES, "config.json"):
        shutil.copy(starter / name, folder / name)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single=[BEGIN, "$A", END], special_tokens=[(text, backend.token_to_id(text)) for text in (BEGIN, END)]
    )
    backend.save(str(folder / "tokenizer.json"))
    with staged(folder) as stage:
        yield stage


def post(server: Server | Stage, path: str, **body: Any) -> Any:
    response = httpx2.post(f"{server.url}/{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def refused(server: Server | Stage, path: str, **body: Any) -> dict[str, Any]:
    response = httpx2.post(f"{server.url}/{path}", json=body, timeout=60)
    assert response.status_code == 400
    validator("ErrorEnvelope").validate(response.json())
    error: dict[str, Any] = response.json()["error"]
    return error


# ---------------------------------------------------------------------------------------- texts


def test_a_text_as_clients_of_vllm_send_it(starter_server: Server, tokenizer: Tokenizer) -> None:
    said = post(starter_server, "tokenize", prompt=TEXT, model="starter")
    validator("Tokens").validate(said)
    assert said["tokens"] == tokenizer.encode(TEXT)
    assert said["count"] == len(said["tokens"])
    assert said["max_model_len"] == 8192
    assert said["token_strs"] is None


def test_the_vocabularys_strings(starter_server: Server) -> None:
    said = post(starter_server, "tokenize", prompt="The capital", return_token_strs=True)
    assert said["token_strs"] == ["The", "Ġcapital"]


def test_a_text_as_clients_of_llama_cpp_send_it(starter_server: Server, tokenizer: Tokenizer) -> None:
    said = post(starter_server, "tokenize", content="The capital 😀", with_pieces=True)
    validator("Tokens").validate(said)
    assert [token["id"] for token in said["tokens"]] == tokenizer.encode("The capital 😀")
    pieces = [token["piece"] for token in said["tokens"]]
    assert pieces[:2] == ["The", " capital"]
    assert any(isinstance(piece, list) for piece in pieces)
    data = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert data.decode() == "The capital 😀"


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({"prompt": "Hi"}, True),
        ({"prompt": "Hi", "add_special_tokens": False}, False),
        ({"prompt": "Hi", "add_special": False}, False),
        ({"prompt": "", "add_special_tokens": True, "add_special": True}, True),
        ({"content": "Hi"}, False),
        ({"content": "", "add_special": None}, False),
        ({"content": "Hi", "add_special": True}, True),
        ({"messages": QUESTION}, False),
        ({"messages": QUESTION, "add_special_tokens": True}, True),
    ],
    ids=str,
)
def test_special_tokens_are_added_by_the_defaults_of_both_families(
    stage: Stage, fields: dict[str, Any], added: bool
) -> None:
    special = [stage.tokenizer.special_token(text) for text in (BEGIN, END)]
    tokens = post(stage, "tokenize", **fields)["tokens"]
    bare = post(stage, "tokenize", **{**fields, "add_special": None, "add_special_tokens": False})["tokens"]
    assert tokens == ([special[0], *bare, special[1]] if added else bare)


def test_special_tokens_in_a_text_can_be_taken_for_text(starter_server: Server, tokenizer: Tokenizer) -> None:
    text = "<|im_end|>"
    assert post(starter_server, "tokenize", content=text)["tokens"] == [tokenizer.special_token(text)]
    literal = post(starter_server, "tokenize", content=text, parse_special=False)["tokens"]
    assert len(literal) > 1
    assert tokenizer.decode(literal) == text
    # And nobody else is concerned.
    assert post(starter_server, "tokenize", content=text)["count"] == 1


def test_tokens_become_text_again_under_both_names(starter_server: Server) -> None:
    text = f"{BEGIN}Ça va? 😀"
    tokens = post(starter_server, "tokenize", prompt=text)["tokens"]
    said = post(starter_server, "detokenize", tokens=tokens)
    validator("Detokenized").validate(said)
    assert said == {"prompt": text, "content": text}
    assert post(starter_server, "detokenize", tokens=[])["content"] == ""


# ---------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
def test_a_conversation_counts_as_many_tokens_as_it_will_take(tiny_server: Server, tools: Any) -> None:
    body = {"messages": QUESTION, "tools": tools}
    answer = post(tiny_server, "v1/chat/completions", model=tiny_server.model, max_tokens=1, **body)
    counted = post(tiny_server, "tokenize", **body)
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    prompt = post(tiny_server, "apply-template", **body)["prompt"]
    assert ("paint" in prompt) == bool(tools)
    assert prompt.endswith(f"{QUESTION[0]['content']}<|im_end|>\n<|im_start|>assistant\n")
    assert post(tiny_server, "tokenize", content=prompt)["tokens"] == counted["tokens"]


def test_the_end_of_a_prompt(tiny_server: Server) -> None:
    answered = [*QUESTION, {"role": "assistant", "content": "It is"}]
    opened = post(tiny_server, "apply-template", messages=answered, continue_final_message=True)
    assert opened["prompt"].endswith("<|im_start|>assistant\nIt is")
    closed = post(tiny_server, "apply-template", messages=answered, add_generation_prompt=False)
    assert closed["prompt"] == f"{opened['prompt']}<|im_end|>\n"
    default = post(tiny_server, "apply-template", messages=answered)
    assert default["prompt"] == f"{closed['prompt']}<|im_start|>assistant\n"
    tokens = post(tiny_server, "tokenize", messages=answered, continue_final_message=True)["tokens"]
    assert tokens == post(tiny_server, "tokenize", content=opened["prompt"])["tokens"]


def test_variables_of_the_template(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stage.tokenizer._tokenizer, "chat_template", "{{ enable_thinking }} {{ reasoning_effort }} {{ colour }}"
    )
    body = {"messages": QUESTION, "reasoning_effort": "none", "chat_template_kwargs": {"colour": "red"}}
    assert post(stage, "apply-template", **body)["prompt"] == "False none red"
    count = post(stage, "tokenize", content="False none red")["count"]
    assert post(stage, "tokenize", **body)["count"] == count


# ---------------------------------------------------------------------------------------- the tokenizer


def test_an_evaluation_tool_finds_what_it_asks_for(starter_server: Server) -> None:
    """As lm-evaluation-harness does: it looks for these, and renders the template itself."""
    said = httpx2.get(f"{starter_server.url}/tokenizer_info", timeout=60).json()
    validator("TokenizerInfo").validate(said)
    assert said["eos_token"] == "<|im_end|>"
    assert said["model"] == "starter"
    assert said["model_max_length"] == 8192
    assert post(starter_server, "tokenize", prompt=said["eos_token"], add_special_tokens=False)["tokens"] == [2]
    rendered = jinja2.Template(said["chat_template"]).render(messages=QUESTION, add_generation_prompt=True)
    assert rendered == post(starter_server, "apply-template", messages=QUESTION)["prompt"]


def test_a_named_models_tokenizer(starter_server: Server) -> None:
    url = f"{starter_server.url}/v1/tokenizer_info"
    assert httpx2.get(url, params={"model": "starter"}, timeout=60).status_code == 200
    assert httpx2.get(url, params={"model": "gpt-99"}, timeout=60).status_code == 404


# ---------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("tokenize", {}, "prompt", "missing_required_parameter"),
        ("tokenize", {"prompt": None, "content": None}, "prompt", "missing_required_parameter"),
        ("tokenize", {"prompt": "a", "content": "b"}, "content", "invalid_value"),
        ("tokenize", {"content": "a", "messages": QUESTION}, "messages", "invalid_value"),
        ("tokenize", {"content": "a", "tools": [TOOL]}, "tools", "invalid_value"),
        ("tokenize", {"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt", "invalid_value"),
        ("tokenize", {"prompt": "a", "add_special": True, "add_special_tokens": False}, "add_special", "invalid_value"),
        ("tokenize", {"content": ["a", 1]}, "content", "invalid_type"),
        ("tokenize", {"messages": []}, "messages", "empty_array"),
        ("tokenize", {"prompt": "a", "temperature": 1}, "temperature", "unknown_parameter"),
        ("tokenize", {"messages": [{"role": "alien", "content": "a"}]}, "messages.0.role", "invalid_value"),
        ("detokenize", {}, "tokens", "missing_required_parameter"),
        ("detokenize", {"tokens": [-1]}, "tokens.0", "integer_below_min_value"),
        ("detokenize", {"tokens": ["a"]}, "tokens.0", "invalid_type"),
        ("detokenize", {"tokens": [10**6]}, "tokens", "invalid_value"),
        ("apply-template", {"prompt": "a"}, "messages", "missing_required_parameter"),
        (
            "apply-template",
            {"messages": QUESTION, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
            "invalid_value",
        ),
        (
            "apply-template",
            {"messages": QUESTION, "chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs.tokenize",
            "invalid_value",
        ),
        (
            "apply-template",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
            "messages.0.content.0",
            "unsupported_value",
        ),
    ],
    ids=str,
)
def test_refusals(stage: Stage, path: str, body: dict[str, Any], param: str, code: str) -> None:
    error = refused(stage, path, **body)
    assert (error["param"], error["code"]) == (param, code)


def test_an_unknown_model(stage: Stage) -> None:
    for path, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [1]})):
        response = httpx2.post(f"{stage.url}/v1/{path}", json={"model": "gpt-99", **body}, timeout=60)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


def test_which_of_several_models_has_to_be_said(tokenizer: Tokenizer) -> None:
    models = [ServedModel(name, tokenizer, None, 4096, 49152, {}) for name in "ab"]  # type: ignore[arg-type]
    assert Registry(models[:1]).entry(None).id == "a"
    assert Registry(models).entry("b").id == "b"
    with pytest.raises(InvalidRequestError, match="'model'") as caught:
        Registry(models).entry(None)
    assert caught.value.suggestions == ("Send one of: a, b.",)


def test_a_body_that_is_too_large(jackfield_server: StartServer) -> None:
    server = jackfield_server(max_body_bytes=1024)
    assert server.post("/tokenize", {"content": "a" * 900}).status == 200
    assert server.post("/tokenize", {"content": "a" * 1024}).status == 413


# ---------------------------------------------------------------------------------------- keys


class Doorman:
    @hookimpl
    def authenticate(self, request: Any) -> Identity:
        return Identity("somebody", scopes=frozenset({request.headers["authorization"]}))


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_key_for_inference_is_a_key_for_tokens(jackfield_server: StartServer, prefix: str) -> None:
    server = jackfield_server(("doorman", Doorman()))
    for scope, status in (("inference", 200), ("admin", 200), ("metrics", 403)):
        headers = {"Authorization": scope}
        assert server.post(f"{prefix}/tokenize", {"content": "a"}, headers=headers).status == status
        assert server.post(f"{prefix}/detokenize", {"tokens": [1]}, headers=headers).status == status
        assert server.post(f"{prefix}/apply-template", {"messages": QUESTION}, headers=headers).status == status
        assert server.request("GET", f"{prefix}/tokenizer_info", headers=headers).status == status


def test_a_long_text_is_read_whole(starter_server: Server) -> None:
    text = "word " * 40_000
    assert len(json.dumps(text)) > 65_536
    assert post(starter_server, "tokenize", prompt=text)["count"] >= 40_000


# ---------------------------------------------------------------------------------------- clients that hang up


@pytest.fixture(scope="module")
def silent() -> Iterator[socket.socket]:
    """Another server, which hears what it is asked and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        yield listening


@pytest.fixture(scope="module")
def passing_on(jackfield_tokenizer: Path, silent: socket.socket) -> Iterator[JackfieldServer]:
    upstreams = {"silent": {"url": f"http://127.0.0.1:{silent.getsockname()[1]}/v1"}}
    with serving(jackfield_tokenizer, models={"far": {"route": ["silent"]}}, upstreams=upstreams) as started:
        yield started


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "Hi"}),
        ("/v1/detokenize", {"tokens": [72]}),
        ("/apply-template", {"messages": QUESTION}),
        ("/v1/messages/count_tokens", {"messages": QUESTION}),
        ("/v1/tokenizer_info?model=far", None),
    ],
    ids=str,
)
def test_who_is_asked_hears_that_the_client_has_gone(
    passing_on: JackfieldServer, silent: socket.socket, path: str, body: dict[str, Any] | None
) -> None:
    with closing(http.client.HTTPConnection(passing_on.url.removeprefix("http://"), timeout=PATIENCE)) as client:
        client.request("POST" if body else "GET", path, json.dumps({"model": "far", **body}) if body else None)
        asked, _ = silent.accept()
        asked.settimeout(PATIENCE)
        assert asked.recv(65_536)
    with asked:
        while asked.recv(65_536):
            pass
    gauge = 'jackfield_upstream_requests_waiting{upstream="silent"} 0.0'
    passing_on.wait_until(lambda: gauge in passing_on.get("/metrics").text)
