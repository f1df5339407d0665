"""Requests that other servers answer: a second Jackfield, and one that fails in every way there is."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import Anthropic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from faulty_upstream import (
    DONE,
    HANGS,
    STREAM,
    USAGE,
    WELL,
    Act,
    FaultyUpstream,
    chunk,
    late,
    refuses,
    says,
)
from jackfield.errors import EngineError
from jackfield.testing import JackfieldServer, serving
from serving import Server

QUESTION: Any = [{"role": "user", "content": "Hi"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def refusing_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def second(jackfield_tokenizer: Path) -> Iterator[JackfieldServer]:
    """Another Jackfield."""
    with serving(jackfield_tokenizer) as server:
        yield server


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, faulty: FaultyUpstream, second: JackfieldServer) -> Iterator[JackfieldServer]:
    patient = {"max_failures": 1000, "first_seconds": 0.3, "idle_seconds": 0.3}
    models = {
        "far": {"route": [{"backend": "second", "model": "scripted"}]},
        "frail": {"route": [{"backend": "faulty", "model": "theirs"}]},
        "vllm": {"route": ["vllm"]},
        "llama": {"route": ["llama"]},
        "safe": {"route": [{"backend": "faulty"}, {"backend": "second", "model": "scripted"}]},
        "broken": {"route": ["weak"]},
        "lost": {"route": ["gone"]},
        "gone": {"route": ["gone", {"backend": "second", "model": "scripted"}]},
        "picky": {
            "route": [
                {"backend": "faulty", "capabilities": []},
                {"backend": "faulty", "context_length": 200},
                {"backend": "faulty", "min_seconds": 30.0},
            ]
        },
        "scripted": {"route": ["mlx", {"backend": "second", "model": "scripted"}]},
    }
    upstreams = {
        "faulty": {"url": faulty.url, "api_key": "secret", **patient},
        "vllm": {"url": faulty.url, "speaks": "vllm", **patient},
        "llama": {"url": faulty.url, "speaks": "llama.cpp", **patient},
        "second": {"url": f"{second.url}/v1"},
        "gone": {"url": f"http://127.0.0.1:{refusing_port()}/v1", "max_failures": 1000},
        "weak": {"url": faulty.url, "max_failures": 1, "rest_seconds": 600},
        "unused": {"url": faulty.url},
    }
    with serving(jackfield_tokenizer, models=models, upstreams=upstreams) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(faulty: FaultyUpstream) -> None:
    faulty.acts.clear()
    faulty.bodies.clear()
    faulty.headers.clear()
    faulty.paths.clear()
    faulty.hung_up.clear()


@pytest.fixture
def client(server: JackfieldServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="client-key", max_retries=0) as made:
        yield made


def attempts(answer: Any) -> list[tuple[str, str, str | None]]:
    told = answer["jackfield"]["attempts"] if isinstance(answer, dict) else answer.jackfield["attempts"]
    return [(one["backend"], one["outcome"], one.get("reason")) for one in told]


# --- Another Jackfield -----------------------------------------------------------------------------------------------


def test_another_server_answers_and_says_so(server: JackfieldServer, second: JackfieldServer) -> None:
    second.says("From afar.")
    reply = server.chat("Hi", model="far", jackfield=True)
    assert (reply.content, reply.finish_reason) == ("From afar.", "stop")
    assert reply.json["model"] == "far"
    assert reply.json["usage"]["completion_tokens"] == len("From afar.")
    assert reply.extension["backend"] == "second"
    assert reply.extension["attempts"] == [{"backend": "second", "outcome": "answered"}]
    assert not server.requests


def test_a_stream_is_passed_through(client: OpenAI, second: JackfieldServer) -> None:
    second.says("One piece at a time")
    chunks = list(
        client.chat.completions.create(
            model="far", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [one.choices[0].delta.content for one in chunks if one.choices and one.choices[0].delta.content]
    assert "".join(texts) == "One piece at a time"
    assert len(texts) > 5
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 19


def test_several_choices_with_log_probabilities(client: OpenAI, second: JackfieldServer) -> None:
    second.says("Yes", logprob=-0.25)
    second.says("No", logprob=-0.5)
    answer = client.chat.completions.create(
        model="far", messages=QUESTION, n=2, logprobs=True, top_logprobs=2, max_tokens=3
    )
    found = {
        choice.message.content: [token.logprob for token in choice.logprobs.content or ()]
        for choice in answer.choices
        if choice.logprobs
    }
    assert found == {"Yes": [-0.25] * 3, "No": [-0.5] * 2 + found["No"][2:]}
    first = answer.choices[0].logprobs
    assert first and first.content and len(first.content[0].top_logprobs) == 2
    assert "".join(token.token for token in first.content[:2]) in ("Ye", "No")


def test_completions_of_several_prompts(client: OpenAI, second: JackfieldServer) -> None:
    second.says("ab", logprob=-0.5)
    second.says("cd", logprob=-0.5)
    answer = client.completions.create(model="far", prompt=["1", "2"], echo=True, logprobs=1, max_tokens=2)
    assert [choice.text for choice in answer.choices] == ["1ab", "2cd"]
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.tokens == ["a", "b"]
    assert logprobs.token_logprobs == [-0.5, -0.5]


def test_responses_go_elsewhere_too(client: OpenAI, second: JackfieldServer) -> None:
    second.says("Answered.")
    answer = client.responses.create(model="far", input="Hi", temperature=0.25)
    assert (answer.output_text, answer.temperature, answer.status) == ("Answered.", 0.25, "completed")


def test_messages_go_elsewhere_too(server: JackfieldServer, second: JackfieldServer) -> None:
    second.says("Answered.")
    with Anthropic(base_url=server.url, api_key="x", max_retries=0) as messages:
        answer = messages.messages.create(model="far", messages=QUESTION, max_tokens=50)
    assert [block.text for block in answer.content if block.type == "text"] == ["Answered."]
    assert answer.usage.output_tokens == len("Answered.")


def from_afar(server: JackfieldServer, second: JackfieldServer, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """What the second server answers by way of the first, and by itself."""
    far = server.post(path, {"model": "far", **body})
    near = second.post(path, {"model": "scripted", **body})
    assert (far.status, near.status) == (200, 200), far.text
    return far.json, near.json


def test_vectors_come_from_another_server(server: JackfieldServer, second: JackfieldServer) -> None:
    assert "jackfield" not in server.post("/v1/embeddings", {"model": "far", "input": "Hi"}).json
    own = server.post("/v1/embeddings", {"model": "scripted", "input": "Hi", "jackfield": {}}).json["jackfield"]
    assert (own["backend"], own["choices"], len(own["attempts"])) == ("mlx", [], 1)
    for form in ("float", "base64"):
        far, near = from_afar(server, second, "/v1/embeddings", {"input": ["Hi", "there"], "encoding_format": form})
        assert far["model"] == "far"
        assert (far["data"], far["usage"]) == (near["data"], near["usage"])
    reply = server.post("/v1/embeddings", {"model": "far", "input": "Hi"})
    assert server.record("completed", reply.request_id).data["backend"] == "second"
    assert server.record("completed", reply.request_id).data["prompt_tokens"] == 2
    received = server.record("received", reply.request_id).data
    assert (received["prompt_tokens"], received["context_length"]) == (None, None), "nobody here counts them"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tokenize", {"prompt": "Hi there"}),
        ("/tokenize", {"content": "Hi there", "with_pieces": True}),
        ("/v1/detokenize", {"tokens": [72, 105]}),
        ("/apply-template", {"messages": QUESTION}),
        ("/v1/messages/count_tokens", {"messages": QUESTION}),
    ],
    ids=str,
)
def test_another_server_counts(server: JackfieldServer, second: JackfieldServer, path: str, body: Any) -> None:
    far, near = from_afar(server, second, path, body)
    assert far == near


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_gap_is_filled_elsewhere(server: JackfieldServer, faulty: FaultyUpstream, stream: bool) -> None:
    numbers = {"tokens_evaluated": 9, "tokens_predicted": 3, "truncated": True, "timings": {"cache_n": 4}}
    events: list[dict[str, Any]] = [
        {"index": 0, "content": "x = ", "tokens": [1, 2], "stop": False},
        {"index": 0, "content": "1", "tokens": [3], "stop": False},
        {"index": 0, "content": "", "stop": True, "stop_type": "word", "stopping_word": ";", **numbers},
    ]
    faulty.acts.append(says(STREAM + b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events)))
    asked = {"input_prefix": "a", "input_suffix": "b", "n_predict": 5, "samplers": ["top_k"], "return_tokens": True}
    reply = server.post("/v1/infill", {"model": "frail", "stream": stream, "jackfield": True, **asked})
    told = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")] or [reply.json]
    assert "".join(one["content"] for one in told) == "x = 1"
    assert [token for one in told for token in one["tokens"]] == [1, 2, 3]
    last = told[-1]
    assert (last["stop_type"], last["stopping_word"], last["truncated"]) == ("word", ";", True)
    assert (last["tokens_evaluated"], last["model"]) == (9, "frail")
    assert attempts(last) == [("faulty", "answered", None)]
    (body,) = faulty.bodies
    assert body == {**body, "model": "theirs", "stream": True, **asked}
    assert not {"jackfield", "n"} & body.keys()
    assert faulty.paths == ["/infill"]


def test_a_jackfield_fills_gaps_for_another(jackfield_tokenizer: Path, tiny_server: Server) -> None:
    route = [{"backend": "tiny", "model": tiny_server.model}]
    gap = {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n", "n_predict": 6, "temperature": 0}
    asked = {**gap, "return_tokens": True, "ignore_eos": True, "n": 2}
    with serving(
        jackfield_tokenizer, upstreams={"tiny": {"url": tiny_server.api}}, models={"far": {"route": route}}
    ) as server:
        near = httpx2.post(f"{tiny_server.url}/infill", json={"model": tiny_server.model, **asked}).json()
        far = server.post("/infill", {"model": "far", **asked}).json
        for name in ("content", "tokens", "stop_type", "tokens_evaluated", "truncated", "tokens_predicted"):
            assert [one[name] for one in far] == [one[name] for one in near], name
        said = server.post("/infill", {"model": "far", **asked, "stream": True}).text
    pieces = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: ")]
    assert "".join(one["content"] for one in pieces if one["index"] == 1) == near[1]["content"]
    assert [one["stop"] for one in pieces if one["index"] == 0][-1] is True


WITHOUT_V1 = {"/tokenize": {"prompt": "Hi"}, "/infill": {"input_prefix": "a", "input_suffix": "b"}}
LACKING: dict[str, dict[str, Any]] = {
    **WITHOUT_V1,
    "/embeddings": {"input": "Hi"},
    "/messages/count_tokens": {"messages": QUESTION},
}


@pytest.mark.parametrize("path", LACKING)
def test_what_an_upstream_does_not_have_is_said(server: JackfieldServer, faulty: FaultyUpstream, path: str) -> None:
    faulty.acts.append(refuses(404, {"detail": "Not Found"}))
    reply = server.post(f"/v1{path}", {"model": "frail", **LACKING[path]})
    error = reply.json["error"]
    assert (reply.status, error["message"]) == (400, f"Upstream faulty has no {path}.")
    assert "another Jackfield" in json.dumps(error)
    assert faulty.paths == [path if path in WITHOUT_V1 else f"/v1{path}"]
    faulty.acts.append(refuses(501, {"error": {"message": "Start it with --embeddings.", "code": 501}}))
    reply = server.post(f"/v1{path}", {"model": "frail", **LACKING[path]})
    assert (reply.status, "--embeddings" in reply.text) == (400, True)
    faulty.acts.append(refuses(404, {"error": {"message": "The model `theirs` does not exist."}}))
    reply = server.post(f"/v1{path}", {"model": "frail", **LACKING[path]})
    assert (reply.status, "does not know the model" in reply.text) == (502, True)


MISSING = [{"loc": ["body", "n"], "msg": "Too few."}, {"loc": ["body", "seed"], "msg": "Too odd."}]
TRACED = "Message: Too hot. (Request ID: 1), Internal exception: Hot: Too hot., original exception: at line 7"
WORDS: list[tuple[int, Any, str]] = [
    (400, {"detail": "Too hot."}, "Too hot."),
    (400, {"error": {"message": "Too hot.", "code": "400"}}, "Too hot."),
    (422, {"detail": MISSING}, "body.n: Too few.; body.seed: Too odd."),
    (400, {"error": {"message": TRACED, "param": {"n": 0}, "code": 400}}, "Too hot."),
    (500, {"error": {"message": TRACED, "code": 500}}, "Upstream faulty failed: Too hot."),
    (500, b"Internal Server Error\nat line 7", "Upstream faulty failed: Internal Server Error"),
    (500, b"<html>", "Upstream faulty failed: status 500"),
    (404, b"Path not found.\n", "Upstream faulty has nothing at /chat/completions: Path not found."),
]


@pytest.mark.parametrize(("status", "body", "message"), WORDS)
def test_a_refusal_is_told_without_what_surrounds_it(
    server: JackfieldServer, faulty: FaultyUpstream, status: int, body: Any, message: str
) -> None:
    faulty.acts.append(refuses(status, body))
    error = server.chat("Hi", model="frail").json["error"]
    assert error["message"] == message
    assert error["code"] != str(status)


VECTOR = {"index": 0, "embedding": [1.0, 0.5]}
VECTORLESS: dict[str, Any] = {
    "no list": {"data": None},
    "too few": {"data": []},
    "too many": {"data": [VECTOR, VECTOR | {"index": 1}]},
    "no numbers": {"data": [VECTOR | {"embedding": "!"}]},
    "no number": {"data": [VECTOR | {"embedding": [None]}]},
    "no vector": {"data": [VECTOR | {"embedding": [[1.0]]}]},
    "no place": {"data": [{"embedding": [1.0]}]},
    "no usage": {"data": [VECTOR], "usage": 1},
}


@pytest.mark.parametrize("fault", VECTORLESS)
def test_somebody_else_makes_vectors_instead(server: JackfieldServer, faulty: FaultyUpstream, fault: str) -> None:
    faulty.acts.append(refuses(200, VECTORLESS[fault]))
    reply = server.post("/v1/embeddings", {"model": "safe", "input": "Hi", "jackfield": True})
    assert reply.status == 200, reply.text
    assert attempts(reply.json) == [("faulty", "failed", "upstream_error"), ("second", "answered", None)]
    event = server.event("backend_fallback", reply.request_id)
    assert dict(event.data) == {"from": "faulty", "to": "second", "reason": "upstream_error"}
    assert server.record("backend", reply.request_id).data["backend"] == "second"


def test_a_count_that_falls_back_is_no_request_of_the_log(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(HANGS)
    reply = server.post("/v1/tokenize", {"model": "safe", "prompt": "Hi"})
    assert (reply.status, reply.json["count"]) == (200, 2)
    assert server.event("backend_fallback", reply.request_id).data["reason"] == "upstream_timeout"
    assert not [one for one in server.records if one.request.id == reply.request_id]
    faulty.acts += [refuses(200, {"tokens": [7, 8]}), refuses(200, {"content": "Hi"}), refuses(200, {"tokens": 1})]
    reply = server.post("/v1/tokenize", {"model": "frail", "content": "Hi"})
    assert reply.json == {"count": 2, "max_model_len": None, "tokens": [7, 8], "token_strs": None}
    reply = server.post("/v1/detokenize", {"model": "frail", "tokens": [1]})
    assert reply.json == {"prompt": "Hi", "content": "Hi"}
    assert server.post("/v1/tokenize", {"model": "frail", "content": "Hi"}).status == 502


def test_vectors_too_have_their_time(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(HANGS)
    reply = server.post("/v1/embeddings", {"model": "safe", "input": "Hi", "timeout": 0.1})
    assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_exceeded")
    assert faulty.hung_up.wait(10)


OTHER: Any = {"type": "function", "function": {"name": "news"}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CHAT, TEXT = "/chat/completions", "/completions"


@pytest.mark.parametrize(
    ("model", "path", "asked", "sent"),
    [
        ("vllm", CHAT, {"messages": QUESTION, "regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ("llama", CHAT, {"messages": QUESTION, "repetition_penalty": 1.5}, {"repeat_penalty": 1.5}),
        (
            "llama",
            CHAT,
            {"messages": QUESTION, "tools": [OTHER, TOOL], "tool_choice": NAMED},
            {"tools": [TOOL], "tool_choice": "required"},
        ),
        ("llama", TEXT, {"prompt": "a", "suffix": "b"}, {"input_prefix": "a", "input_suffix": "b"}),
        ("vllm", "/tokenize", {"content": "a"}, {"prompt": "a", "add_special_tokens": False}),
        ("llama", "/tokenize", {"prompt": "a"}, {"content": "a", "add_special": True}),
    ],
)
def test_a_server_is_asked_in_its_own_words(  # noqa: PLR0917
    server: JackfieldServer, faulty: FaultyUpstream, model: str, path: str, asked: Any, sent: Any
) -> None:
    server.post(f"/v1{path}", {"model": model, **asked})
    own = {name for name in asked if name not in sent and name != "messages"}
    assert sent.items() <= faulty.bodies[0].items()
    assert not own & faulty.bodies[0].keys()
    assert faulty.paths[0] == ("/infill" if "suffix" in asked else path if path == "/tokenize" else f"/v1{path}")


@pytest.mark.parametrize(
    ("model", "path", "asked", "param"),
    [
        ("vllm", CHAT, {"messages": QUESTION, "grammar": "start: /a/"}, "grammar"),
        ("vllm", "/tokenize", {"prompt": "a", "parse_special": False}, "parse_special"),
        ("vllm", "/tokenize", {"prompt": "a", "with_pieces": True}, "with_pieces"),
        ("llama", CHAT, {"messages": QUESTION, "regex": "a+"}, "regex"),
        ("llama", TEXT, {"prompt": ["a", "b"], "suffix": "c"}, "prompt"),
        ("llama", TEXT, {"prompt": "a", "suffix": "c", "logprobs": 1}, "logprobs"),
        ("llama", "/tokenize", {"messages": QUESTION}, "messages"),
    ],
)
def test_what_a_server_has_no_words_for_is_refused(  # noqa: PLR0917
    server: JackfieldServer, faulty: FaultyUpstream, model: str, path: str, asked: Any, param: str
) -> None:
    reply = server.post(f"/v1{path}", {"model": model, **asked})
    error = reply.json["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "unsupported_value", param)
    assert not faulty.bodies


def test_another_server_tells_of_its_tokenizer(server: JackfieldServer, second: JackfieldServer) -> None:
    told = server.get("/v1/tokenizer_info?model=far").json
    assert told == second.get("/tokenizer_info?model=scripted").json | {"model": "far"}


def test_nothing_between_two_texts_is_no_nonsense(client: OpenAI, faulty: FaultyUpstream) -> None:
    head, hello, tail = WELL.partition(chunk(content="Hello"))
    faulty.acts.append(says(head + hello + b"data: null\n\n" + tail))
    answer = client.chat.completions.create(model="frail", messages=QUESTION)
    assert answer.choices[0].message.content == "Hello"


def test_tokens_that_are_counted_for_each_choice_are_added_up(client: OpenAI, faulty: FaultyUpstream) -> None:
    ends = [chunk(content="Hi", index=index) + chunk("stop", index=index) + USAGE for index in (0, 1)]
    faulty.acts.append(says(STREAM + b"".join(ends) + DONE))
    usage = client.chat.completions.create(model="frail", messages=QUESTION, n=2).usage
    assert usage and (usage.prompt_tokens, usage.completion_tokens) == (7, 4)


def test_models_that_are_elsewhere_are_listed(server: JackfieldServer) -> None:
    states = {model["id"]: model["jackfield"]["state"] for model in server.get("/v1/models").json["data"]}
    assert (states["far"], states["scripted"]) == ("remote", "ready")
    assert server.get("/ready").status == 200


def test_two_servers_that_lead_to_each_other_are_noticed(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    assert server.chat("Hi", model="frail").content == "Hello"
    for trail in (faulty.headers[0]["jackfield-trail"], ", ".join("abcdefgh")):
        reply = server.chat("Hi", model="frail", headers={"Jackfield-Trail": trail})
        assert (reply.status, reply.json["error"]["code"]) == (508, "upstream_loop")
    assert len(faulty.bodies) == 1


# --- One that fails --------------------------------------------------------------------------------------------------

TOOL_CALL = (
    STREAM
    + chunk(tool_calls=[{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"a"'}}])
    + chunk(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}])
    + chunk(tool_calls=[{"index": 1, "id": "call_2", "function": {"name": "weather", "arguments": "{}"}}])
)


def test_it_is_asked_in_openais_words_with_its_own_key(client: OpenAI, faulty: FaultyUpstream) -> None:
    answer = client.chat.completions.create(
        model="frail", messages=QUESTION, temperature=0.5, extra_body={"priority": 3, "timeout": 50, "jackfield": True}
    )
    assert answer.choices[0].message.content == "Hello"
    assert answer.usage and answer.usage.prompt_tokens == 7
    (body,), (headers,) = faulty.bodies, faulty.headers
    assert body == {
        "model": "theirs",
        "messages": QUESTION,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert headers["authorization"] == "Bearer secret"
    assert "client-key" not in json.dumps(headers)
    assert len(headers["jackfield-trail"]) == 16


def test_calls_and_thoughts_come_through(client: OpenAI, faulty: FaultyUpstream) -> None:
    thought = chunk(reasoning_content="Hm.")
    faulty.acts.append(says(TOOL_CALL + thought + chunk(finish="tool_calls") + DONE))
    answer = client.chat.completions.create(model="frail", messages=QUESTION, tools=[TOOL])
    choice = answer.choices[0]
    calls: Any = choice.message.tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_1", "weather", '{"a": 1}'),
        ("call_2", "weather", "{}"),
    ]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.model_dump()["reasoning_content"] == "Hm."


def test_who_gives_one_choice_alone_cannot_give_several(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    reply = server.chat("Hi", model="frail", n=2)
    error = reply.json["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "unsupported_value", "n")
    faulty.acts.append(says(STREAM + chunk(finish="stop") + chunk(index=1, content="a")))
    assert server.chat("Hi", model="frail", n=2).json["error"]["code"] == "upstream_error"


def test_a_call_that_had_to_be_is_told_as_one(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    stopped = says(TOOL_CALL + chunk(finish="stop") + DONE)
    faulty.acts += [stopped, stopped]
    forced = {"type": "function", "function": {"name": "weather"}}
    reply = server.chat("Hi", model="frail", tools=[TOOL], tool_choice=forced)
    assert reply.json["choices"][0]["finish_reason"] == "tool_calls"
    with Anthropic(base_url=server.url, api_key="x", max_retries=0) as messages:
        tool: Any = {"name": "weather", "input_schema": {"type": "object"}}
        choice: Any = {"type": "tool", "name": "weather"}
        asked: Any = {"messages": QUESTION, "max_tokens": 50, "tools": [tool], "tool_choice": choice}
        assert messages.messages.create(model="frail", **asked).stop_reason == "tool_use"


NO_MODEL = {"error": {"message": "/chat/completions: Invalid model name passed in model=theirs.", "code": "400"}}
CANNOT = {"object": "error", "message": "suffix is not currently supported", "code": 400}
ENVELOPE = {"error": {"message": "Too hot.", "param": "temperature", "code": "invalid_value"}}
TOO_LONG = {"error": {"message": "This model's maximum context length is 8 tokens. You ...", "code": None}}
FORBIDDEN = [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]
FAULTS: dict[str, tuple[Act, int, str]] = {
    "bad request": (refuses(400, ENVELOPE), 400, "invalid_value"),
    "too long": (refuses(400, TOO_LONG), 400, "context_length_exceeded"),
    "cannot do it": (refuses(400, CANNOT), 400, "unsupported_value"),
    "never heard of it": (
        refuses(422, {"detail": "Unexpected fields in the request: {'top_k'}"}),
        400,
        "unsupported_value",
    ),
    "OpenAI neither": (refuses(400, {"error": {"message": "Unknown parameter: 'top_k'."}}), 400, "unsupported_value"),
    "nor FastAPI": (refuses(422, {"detail": FORBIDDEN}), 400, "unsupported_value"),
    "wrong key": (refuses(401, {}), 502, "upstream_unauthorized"),
    "no such model": (refuses(404, {"detail": "There is no model `theirs`."}), 502, "upstream_model_not_found"),
    "nothing is said": (refuses(404, b""), 502, "upstream_model_not_found"),
    "LiteLLM's no such model": (refuses(400, NO_MODEL), 502, "upstream_model_not_found"),
    "no such model by code": (refuses(400, {"error": {"code": "model_not_found"}}), 502, "upstream_model_not_found"),
    "no such place": (refuses(404, {"detail": "Not Found"}), 502, "upstream_error"),
    "nothing yet": (refuses(404, b"Path '/v1/chat/completions' not found."), 502, "upstream_error"),
    "too often": (refuses(429, {}, Retry_After="7"), 429, "upstream_rate_limit"),
    "no room": (refuses(503, b"<html>", Retry_After="9"), 503, "upstream_unavailable"),
    "a failure": (refuses(500, b"oops"), 502, "upstream_error"),
    "a gateway's time": (refuses(504, b""), 504, "upstream_timeout"),
    "a circle": (refuses(508, b""), 508, "upstream_loop"),
    "a redirect": (refuses(307, b"", Location="http://127.0.0.1:1/"), 502, "upstream_error"),
    "silence": (HANGS, 504, "upstream_timeout"),
    "silence after the head": (says(STREAM, then_hangs=True), 504, "upstream_timeout"),
    "nothing": (says(b""), 502, "upstream_error"),
    "no HTTP": (says(b"SSH-2.0-OpenSSH\r\n\r\n"), 502, "upstream_error"),
    "no stream": (refuses(200, {"choices": []}), 502, "upstream_error"),
    "no JSON": (says(STREAM + b"data: {nonsense\n\n"), 502, "upstream_error"),
    "no object": (says(STREAM + b"data: [1]\n\n"), 502, "upstream_error"),
    "a choice too many": (says(STREAM + chunk(index=3, content="a")), 502, "upstream_error"),
    "no text": (says(STREAM + chunk(content=[1])), 502, "upstream_error"),
    "an error in the stream": (says(STREAM + b'data: {"error": {"message": "Out."}}\n\n'), 502, "upstream_error"),
    "an early end": (says(STREAM + DONE), 502, "upstream_error"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_each_fault_is_an_error_of_its_own(
    server: JackfieldServer, faulty: FaultyUpstream, fault: str, stream: bool
) -> None:
    act, status, code = FAULTS[fault]
    faulty.acts.append(act)
    reply = server.chat("Hi", model="frail", stream=stream)
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    if fault == "bad request":
        assert (reply.json["error"]["message"], reply.json["error"]["param"]) == ("Too hot.", "temperature")
    if fault in ("too often", "no room"):
        assert reply.headers["retry-after"] == {"too often": "7", "no room": "9"}[fault]
    assert len(faulty.bodies) == 1


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "bad request"])
def test_somebody_else_answers_instead(
    server: JackfieldServer, second: JackfieldServer, faulty: FaultyUpstream, fault: str
) -> None:
    act, _, code = FAULTS[fault]
    faulty.acts.append(act)
    second.says("Here I am.")
    reply = server.chat("Hi", model="safe", stream=True, jackfield=True)
    assert reply.content == "Here I am."
    assert attempts({"jackfield": reply.extension}) == [("faulty", "failed", code), ("second", "answered", None)]
    event = server.event("backend_fallback", reply.request_id)
    assert dict(event.data) == {"from": "faulty", "to": "second", "reason": code}
    assert server.record("backend", reply.request_id).data["backend"] == "second"


def test_whoever_cannot_be_reached_is_passed_over(server: JackfieldServer, second: JackfieldServer) -> None:
    second.says("Here.")
    reply = server.chat("Hi", model="gone", jackfield=True)
    assert attempts(reply.json) == [("gone", "failed", "upstream_error"), ("second", "answered", None)]


def test_where_nobody_listens_is_said_with_what_to_look_at(server: JackfieldServer) -> None:
    error = server.chat("Hi", model="lost").json["error"]
    assert (error["code"], error["message"]) == ("upstream_error", "Upstream gone failed: it cannot be reached.")
    assert "upstreams.gone.url" in error["suggestions"][0]


def test_a_clients_mistake_is_nobodys_to_mend(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(refuses(400, ENVELOPE))
    assert server.chat("Hi", model="safe").status == 400


def test_an_answer_that_breaks_off_before_it_is_sent_is_begun_anew(
    server: JackfieldServer, second: JackfieldServer, faulty: FaultyUpstream
) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Half an ans")))
    second.says("Whole.")
    reply = server.chat("Hi", model="safe", jackfield=True)
    assert reply.content == "Whole."
    assert attempts(reply.json)[0] == ("faulty", "failed", "upstream_error")


def test_after_a_first_sign_of_life_there_is_no_way_back(
    jackfield_tokenizer: Path, faulty: FaultyUpstream, second: JackfieldServer
) -> None:
    upstreams = {"faulty": {"url": faulty.url, "first_seconds": 0.5}, "second": {"url": f"{second.url}/v1"}}
    models = {"slow": {"route": ["faulty", {"backend": "second", "model": "scripted"}]}}
    with serving(jackfield_tokenizer, upstreams=upstreams, models=models, heartbeat=0.05) as server:
        faulty.acts.append(late(0.2, WELL))
        reply = server.chat("Hi", model="slow", stream=True)
        assert (reply.content, reply.finish_reason) == ("Hello", "stop")
        assert ": heartbeat" in reply.text
        faulty.acts.append(HANGS)
        reply = server.chat("Hi", model="slow", stream=True)
        assert reply.status == 200
        assert [one["error"]["code"] for one in reply.chunks if "error" in one] == ["upstream_timeout"]
        faulty.hung_up.clear()
        faulty.acts.append(HANGS)
        with server.streaming("Hi", model="slow"):
            pass
        assert faulty.hung_up.wait(10)


@pytest.mark.parametrize("hangs", [False, True], ids=["cut", "silent"])
def test_a_stream_that_breaks_in_the_middle_ends_with_an_error(
    client: OpenAI, server: JackfieldServer, second: JackfieldServer, faulty: FaultyUpstream, hangs: bool
) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Half an ans"), then_hangs=hangs))
    asked = len(second.requests)
    said = []
    with pytest.raises(openai.APIError) as told:
        for one in client.chat.completions.create(model="safe", messages=QUESTION, stream=True):
            said += [choice.delta.content for choice in one.choices]
    assert "".join(text or "" for text in said) == "Half an ans"
    assert told.value.code == ("upstream_timeout" if hangs else "upstream_error")
    assert len(second.requests) == asked


def test_the_same_in_anthropics_words(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Half")))
    with (
        Anthropic(base_url=server.url, api_key="x", max_retries=0) as messages,
        pytest.raises(anthropic.APIStatusError, match="ended before"),
        messages.messages.stream(model="frail", messages=QUESTION, max_tokens=50) as stream,
    ):
        list(stream)


def test_a_stream_with_calls_ends_as_cut_off(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(says(TOOL_CALL))
    reply = server.chat("Hi", model="frail", stream=True, tools=[TOOL])
    assert reply.finish_reason == "length"
    assert not any("error" in one for one in reply.chunks)
    assert "ended before the answer did" in reply.text


def test_a_client_that_hangs_up_ends_the_work_there(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Hello"), then_hangs=True))
    with server.streaming("Hi", model="frail") as chunks:
        next(chunks)
    assert faulty.hung_up.wait(10)


def test_a_requests_own_limit_counts(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(HANGS)
    reply = server.chat("Hi", model="safe", timeout=0.1)
    assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_exceeded")
    faulty.acts.append(says(STREAM + chunk(content="Hello"), then_hangs=True))
    reply = server.chat("Hi", model="frail", timeout=0.1, jackfield=True)
    assert (reply.content, reply.finish_reason) == ("Hello", "length")
    assert reply.extension["choices"][0]["ended_by"] == "timeout"


def test_conditions_leave_ways_out(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    reply = server.chat("word " * 400, model="picky", tools=[TOOL], timeout=5)
    assert (reply.status, reply.json["error"]["code"]) == (503, "no_backend")
    assert "faulty: capability, faulty: context, faulty: deadline" in reply.json["error"]["message"]
    assert reply.headers["retry-after"] == "5"
    assert not faulty.bodies


def test_whoever_fails_is_left_alone(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(refuses(500, b"oops"))
    assert server.chat("Hi", model="broken").status == 502
    reply = server.chat("Hi", model="broken")
    assert reply.json["error"]["code"] == "no_backend"
    assert "circuit_open" in reply.json["error"]["message"]
    assert len(faulty.bodies) == 1
    metrics = server.get("/metrics").text
    assert 'jackfield_upstream_state{state="open",upstream="weak"} 1.0' in metrics
    assert 'jackfield_upstream_requests_total{outcome="upstream_error",upstream="weak"} 1.0' in metrics
    skipped = 'backend="weak",model_name="broken",outcome="skipped",reason="circuit_open"'
    assert f"jackfield_route_attempts_total{{{skipped}}} 1.0" in metrics


def test_the_engine_here_comes_first_and_falls_back(server: JackfieldServer, second: JackfieldServer) -> None:
    server.says("Mine.")
    reply = server.chat("Hi", jackfield=True)
    assert (reply.content, attempts(reply.json)) == ("Mine.", [("mlx", "answered", None)])
    second.says("Theirs.")
    # More than fits here, and not there either: the last error is told.
    reply = server.chat("x" * 5000)
    assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
    second.engine.scripts.clear()


def test_an_engine_that_fails_is_replaced_before_anything_is_said(
    server: JackfieldServer, second: JackfieldServer
) -> None:
    server.says("Half an ans", error=EngineError("It broke."))
    second.says("Whole.")
    reply = server.chat("Hi", jackfield=True)
    assert reply.content == "Whole."
    assert attempts(reply.json) == [("mlx", "failed", "engine_error"), ("second", "answered", None)]
    server.says("", error=EngineError("It broke."))
    second.says("Whole.")
    assert server.chat("Hi", stream=True).content == "Whole."
    server.says("Half an ans", error=EngineError("It broke."))
    reply = server.chat("Hi", stream=True)
    assert (reply.content, reply.finish_reason) == ("Half an ans", "length")


def test_nothing_goes_to_an_upstream_that_is_not_in_the_models_route(
    server: JackfieldServer, second: JackfieldServer, faulty: FaultyUpstream
) -> None:
    before = len(second.requests)
    server.says("Mine.")
    assert server.chat("Hi").content == "Mine."
    for path, body in (
        ("/v1/embeddings", {"model": "scripted", "input": "Hi"}),
        ("/v1/chat/completions", {"model": "unused", "messages": QUESTION}),
        ("/v1/chat/completions", {"model": "faulty", "messages": QUESTION}),
    ):
        server.post(path, body)
    second.says("Theirs.")
    assert server.chat("Hi", model="far").content == "Theirs."
    assert not faulty.bodies
    assert len(second.requests) == before + 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_cut_anywhere_ends_well_or_as_an_error(
    server: JackfieldServer, faulty: FaultyUpstream, data: st.DataObject
) -> None:
    whole = data.draw(st.sampled_from([WELL, TOOL_CALL + chunk(finish="tool_calls") + DONE]))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=3)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    faulty.acts.append(says(bytes(damaged)))
    reply = server.chat("Hi", model="frail", stream=True)
    assert reply.status in (200, 429, 502, 503, 504, 508) or 400 <= reply.status < 500
    ended = reply.status != 200 or any("error" in one for one in reply.chunks) or reply.finish_reason is not None
    assert ended
    assert server.get("/health").status == 200
    faulty.acts.clear()
