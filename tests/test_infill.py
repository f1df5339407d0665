"""Filling in the middle by each of the ways to ask for it, as editors do, and what a keystroke costs."""

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, OpenAI

from contract import validator
from jackfield.engine.request import CacheUse, FinishEvent, StartEvent
from jackfield.errors import EngineError
from jackfield.models.fim import File, FillInTheMiddle, Gap, fill_in_the_middle
from jackfield.models.tokenizer import Tokenizer
from jackfield.protocol.completions import CompletionRequest
from jackfield.protocol.fim import FimCompletionRequest
from jackfield.protocol.infill import InfillRequest
from jackfield.protocol.parsing import parse
from scripted_engine import Stage, staged
from serving import Server

PREFIX, SUFFIX = "import os\n\ndef add(x, y):\n", "\n\nprint(add(1, 2))\n"
LINE = "    re"
FILES = [
    {"filename": "a.py", "text": "def f(x):\n    return x\n" * 20, "time": [1, 2]},
    {"filename": "b.py", "text": "def g(y):\n    return y\n" * 20, "time": 1763800000},
]
DONE = FinishEvent("stop", prefill_seconds=0.5, decode_seconds=0.25)
START = StartEvent(0.0, CacheUse(tokens=5))
PATIENCE = 60

LLAMA_VIM = {
    "id_slot": 0,
    "input_prefix": PREFIX,
    "input_suffix": SUFFIX,
    "input_extra": FILES,
    "prompt": LINE,
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
    "model": "",
}
"""What llama.vim sends when somebody types, and below when there are new files."""
WARM_UP = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": FILES,
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "samplers": [],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
    "model": "",
}
LLAMA_VSCODE = {
    "id_slot": 0,
    "input_prefix": PREFIX,
    "input_suffix": SUFFIX,
    "input_extra": FILES,
    "prompt": LINE,
    "n_predict": 128,
    "n_cmpl": 3,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 2500,
}
CONTINUE = {
    "prompt": "def f(",
    "suffix": "return x",
    "max_tokens": 64,
    "temperature": 0.01,
    "stop": ["\n\n", "/src/"],
    "stream": True,
}


@pytest.fixture(scope="module")
def theatre(tiny_model: Path) -> Iterator[Stage]:
    with staged(tiny_model) as stage:
        yield stage


@pytest.fixture
def stage(theatre: Stage) -> Stage:
    """An empty one."""
    theatre.engine.scripts.clear()
    theatre.engine.requests.clear()
    return theatre


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer(tiny_model)


@pytest.fixture(scope="module")
def fim(tokenizer: Tokenizer) -> FillInTheMiddle:
    found = fill_in_the_middle(tokenizer)
    assert found is not None
    return found


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def post(url: str, path: str, body: dict[str, Any], **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{url}{path}", json=body | fields, timeout=PATIENCE)


def infill(url: str, **fields: Any) -> Any:
    """The answer to a request with a gap, as JSON."""
    response = post(url, "/infill", {"input_prefix": PREFIX, "input_suffix": SUFFIX, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def events(response: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data:")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# --- suffix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("echo", [False, True])
def test_the_official_sdk_fills_in(stage: Stage, fim: FillInTheMiddle, tokenizer: Tokenizer, echo: bool) -> None:
    stage.engine.scripts = [stage.script("turn x + y\n", DONE)]
    with client(stage.url) as openai:
        answer = openai.completions.create(model="actor", prompt=PREFIX, suffix=SUFFIX, echo=echo, max_tokens=20)
    (request,) = stage.engine.requests
    assert list(request.prompt) == fim.prompt(PREFIX, SUFFIX)
    assert request.stop_tokens == fim.ends | tokenizer.end_tokens
    assert answer.choices[0].text == (PREFIX if echo else "") + "turn x + y\n"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(request.prompt)


def test_it_streams(stage: Stage) -> None:
    stage.engine.scripts = [stage.script("turn x + y\n", DONE)]
    with client(stage.url) as openai:
        chunks = list(openai.completions.create(model="actor", prompt=PREFIX, suffix=SUFFIX, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "turn x + y\n"
    assert len(chunks) > 3


@pytest.mark.parametrize("as_tokens", [False, True])
def test_every_prompt_gets_the_suffix(
    stage: Stage, fim: FillInTheMiddle, tokenizer: Tokenizer, as_tokens: bool
) -> None:
    stage.engine.scripts = [stage.script("1", DONE), stage.script("2", DONE)]
    prompts = ["a = ", "b = "]
    sent = [tokenizer.encode(prompt) for prompt in prompts] if as_tokens else prompts
    answer = post(stage.url, "/v1/completions", {"model": "actor", "prompt": sent, "suffix": SUFFIX}).json()
    assert [list(request.prompt) for request in stage.engine.requests] == [fim.prompt(one, SUFFIX) for one in prompts]
    assert [choice["text"] for choice in answer["choices"]] == ["1", "2"]


@pytest.mark.parametrize("suffix", ["", None])
def test_an_empty_suffix_is_none(stage: Stage, tokenizer: Tokenizer, suffix: str | None) -> None:
    stage.engine.scripts = [stage.script("1", DONE)]
    post(stage.url, "/v1/completions", {"model": "actor", "prompt": "a = ", "suffix": suffix})
    assert list(stage.engine.requests[0].prompt) == tokenizer.encode("a = ")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/fim/completions", CONTINUE, "model"),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "model"),
    ],
)
def test_a_model_without_the_tokens_says_so(
    starter_server: Server, path: str, body: dict[str, Any], param: str
) -> None:
    response = post(starter_server.url, path, {"model": "starter", **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported_value")
    assert "starter cannot fill in the middle" in error["message"]
    assert any("Qwen2.5-Coder" in suggestion for suggestion in error["suggestions"])
    plain = {"model": "starter", "prompt": "a", "suffix": "", "max_tokens": 1}
    assert post(starter_server.url, "/v1/completions", plain).status_code == 200


@pytest.mark.parametrize("name", ["<|fim_pad|>", "<|fim_middle|>", "<|file_sep|>", "<|endoftext|>"])
def test_no_token_of_the_format_is_ever_part_of_a_middle(tiny_server: Server, tokenizer: Tokenizer, name: str) -> None:
    token = tokenizer.token(name)
    body = {"model": tiny_server.model, "prompt": "a", "max_tokens": 5, "logit_bias": {str(token): 100}}
    (choice,) = post(tiny_server.url, "/v1/completions", body, suffix="b", ignore_eos=True).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    for path in ("/infill", "/v1/fim/completions"):
        gap = {"input_prefix": "a", "input_suffix": "b"} if path == "/infill" else {"prompt": "a", "suffix": "b"}
        own = {**gap, "model": tiny_server.model, "logit_bias": body["logit_bias"]}
        said = post(tiny_server.url, path, own).json()
        assert said.get("content", said.get("choices", [{}])[0].get("message", {}).get("content")) == ""
    (choice,) = post(tiny_server.url, "/v1/completions", body, ignore_eos=True).json()["choices"]
    assert choice["finish_reason"] == "length"


def test_too_long_a_suffix_is_told(tiny_server: Server) -> None:
    with client(tiny_server.url) as openai, pytest.raises(BadRequestError) as raised:
        openai.completions.create(model=tiny_server.model, prompt="a", suffix="b\n" * 3000)
    assert raised.value.code == "context_length_exceeded"


def test_log_probabilities_of_the_middle_are_told_and_those_of_the_prompt_are_not(tiny_server: Server) -> None:
    body = {"model": tiny_server.model, "prompt": "a", "suffix": "b", "max_tokens": 3, "logprobs": 1}
    (choice,) = post(tiny_server.url, "/v1/completions", body, ignore_eos=True).json()["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    refused = post(tiny_server.url, "/v1/completions", body, echo=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")


# --- Mistral's endpoint -----------------------------------------------------------------------------------------------


def test_continue_gets_a_chat_shaped_stream(stage: Stage, fim: FillInTheMiddle) -> None:
    stage.engine.scripts = [stage.script("x):\n    ", DONE, START)]
    *chunks, last = events(post(stage.url, "/v1/fim/completions", {"model": "actor", **CONTINUE}))
    assert last == "[DONE]"
    for chunk in chunks:
        validator("ChatCompletionChunk").validate(chunk)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "x):\n    "
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert ["usage" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}
    (request,) = stage.engine.requests
    assert list(request.prompt) == fim.prompt(CONTINUE["prompt"], CONTINUE["suffix"])
    assert (request.max_tokens, request.sampling.temperature) == (64, 0.01)


def test_a_whole_answer_is_chat_shaped_too(stage: Stage) -> None:
    stage.engine.scripts = [stage.script("x):\n\nreturn", None), stage.script("y", DONE)]
    body = {**CONTINUE, "stream": False, "model": "actor", "n": 2, "jackfield": True}
    answer = post(stage.url, "/fim/completions", body).json()
    validator("ChatCompletion").validate(answer)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["x):", "y"]
    assert [report["ended_by"] for report in answer["jackfield"]["choices"]] == ["stop_string", "stop"]


def test_without_a_suffix_it_goes_on(stage: Stage, tokenizer: Tokenizer) -> None:
    stage.engine.scripts = [stage.script("x", DONE)]
    post(stage.url, "/v1/fim/completions", {"model": "actor", "prompt": "def f(", "suffix": None})
    assert list(stage.engine.requests[0].prompt) == tokenizer.encode("def f(")


def test_the_seed_has_a_name_of_its_own(stage: Stage) -> None:
    stage.engine.scripts = [stage.script("x", DONE), stage.script("x", DONE)]
    for own in ({"random_seed": 7}, {"seed": 7}):
        post(stage.url, "/v1/fim/completions", {"model": "actor", "prompt": "def f(", **own})
    assert [request.sampling.seed for request in stage.engine.requests] == [7, 7]


# --- llama.cpp's endpoint ---------------------------------------------------------------------------------------------


def test_llama_vim_gets_what_it_shows(stage: Stage, fim: FillInTheMiddle, tokenizer: Tokenizer) -> None:
    stage.engine.scripts = [stage.script("turn x + y", DONE, START)]
    response = post(stage.url, "/infill", LLAMA_VIM)
    # What llama.vim looks for before it takes an answer for one.
    assert re.search(r'"content"\s*:"', response.text)
    (request,) = stage.engine.requests
    prompt_n, predicted_n = len(request.prompt) - 5, len(tokenizer.encode("turn x + y"))
    assert response.json() == {
        "content": "turn x + y",
        "timings/prompt_n": prompt_n,
        "timings/prompt_ms": 500.0,
        "timings/prompt_per_token_ms": pytest.approx(500 / prompt_n),
        "timings/prompt_per_second": pytest.approx(prompt_n / 0.5),
        "timings/predicted_n": predicted_n,
        "timings/predicted_ms": 250.0,
        "timings/predicted_per_token_ms": 250 / predicted_n,
        "timings/predicted_per_second": predicted_n * 4,
        "truncated": False,
        "tokens_cached": 5,
    }
    files = tuple(File(str(file["filename"]), str(file["text"])) for file in FILES)
    assert list(request.prompt) == fim.fitting(Gap(PREFIX, SUFFIX, LINE, files), 4000)[0]
    assert request.max_tokens == 128
    assert (request.sampling.top_k, request.sampling.top_p, request.sampling.temperature) == (40, 0.9, 1.0)
    assert len(request.processors) == 1


def test_llama_vscode_gets_an_array_and_the_context_length(stage: Stage) -> None:
    stage.engine.scripts = [stage.script(text, DONE, START) for text in ("turn x", "turn y", "turn z")]
    answers = post(stage.url, "/infill", LLAMA_VSCODE).json()
    validator("InfillAnswers").validate(answers)
    for answer in answers:
        validator("InfillAnswer").validate(answer)
    assert [answer["content"] for answer in answers] == ["turn x", "turn y", "turn z"]
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert {answer["generation_settings"]["n_ctx"] for answer in answers} == {4096}
    assert len({answer["generation_settings"]["seed"] for answer in answers}) == 3


def test_a_stream_ends_with_the_numbers_and_without_done(stage: Stage, tokenizer: Tokenizer) -> None:
    stage.engine.scripts = [stage.script("turn x", DONE, START)]
    body = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "stream": True, "jackfield": True}
    *chunks, last = events(post(stage.url, "/v1/infill", body))
    for chunk in chunks:
        validator("InfillChunk").validate(chunk)
    assert "".join(chunk["content"] for chunk in chunks) == "turn x"
    assert [token for chunk in chunks for token in chunk["tokens"]] == tokenizer.encode("turn x")
    assert [chunk["tokens_predicted"] for chunk in chunks] == list(range(1, len(chunks) + 1))
    validator("InfillAnswer").validate(last)
    assert (last["content"], last["stop"], last["stop_type"], last["tokens_cached"]) == ("", True, "eos", 5)
    assert last["tokens_predicted"] == len(tokenizer.encode("turn x"))
    assert last["jackfield"]["choices"][0]["ended_by"] == "stop"


def test_only_the_end_of_a_stream_has_fewer_fields(stage: Stage) -> None:
    stage.engine.scripts = [stage.script("turn x", DONE)]
    body = {"input_prefix": "", "input_suffix": "", "stream": True, "response_fields": ["stop_type", "no/such", "x"]}
    *chunks, last = events(post(stage.url, "/infill", body))
    assert [chunk["stop"] for chunk in chunks] == [False] * len(chunks)
    assert last == {"stop_type": "eos"}


@pytest.mark.parametrize(
    ("fields", "script", "end", "expected"),
    [
        ({}, "a\nb", DONE, ("a\nb", "eos", "")),
        ({"n_predict": 2}, "a b", FinishEvent("length"), ("a b", "limit", "")),
        ({"stop": ["\n", ";"]}, "a;b\nc", None, ("a", "word", ";")),
        ({"n_indent": 4}, "a\n    b\nc", None, ("a\n    b", "limit", "")),
        ({"n_indent": 4}, "a\n\n    b\n", DONE, ("a\n\n    b\n", "eos", "")),
        ({"n_indent": 4, "stop": ["b"]}, "a\n    b\nc", None, ("a\n    ", "word", "b")),
        ({"timeout": 60}, "a", FinishEvent("timeout"), ("a", "limit", "")),
    ],
)
def test_it_says_why_a_text_ended(
    stage: Stage, fields: dict[str, Any], script: str, end: FinishEvent | None, expected: tuple[str, str, str]
) -> None:
    stage.engine.scripts = [stage.script(script, end)]
    said = infill(stage.url, **fields)
    assert (said["content"], said["stop_type"], said["stopping_word"]) == expected
    assert said["has_new_line"] == ("\n" in expected[0])


def test_time_ends_a_text_at_a_line_break(tiny_server: Server, tokenizer: Tokenizer) -> None:
    (line_break,) = tokenizer.encode("\n")
    fields = {"n_predict": 300, "logit_bias": {str(line_break): 100}, "temperature": 0}
    said = infill(tiny_server.url, t_max_predict_ms=1, **fields)
    assert said["stop_type"] == "limit"
    assert said["tokens_predicted"] < 300
    assert infill(tiny_server.url, **fields | {"t_max_predict_ms": 0, "n_predict": 30})["tokens_predicted"] == 30


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"samplers": []}, {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}),
        ({"samplers": ["temperature", "min_p"]}, {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.1}),
        ({"samplers": ["penalties", "top_k"]}, {"temperature": 1.0, "top_k": 3, "repeat_penalty": 1.5}),
        ({}, {"temperature": 0.5, "top_k": 3, "top_p": 0.7, "min_p": 0.1, "repeat_penalty": 1.5}),
    ],
)
def test_samplers_that_are_not_named_are_not_used(
    stage: Stage, fields: dict[str, Any], expected: dict[str, float]
) -> None:
    stage.engine.scripts = [stage.script("x", DONE)]
    set_ = {"temperature": 0.5, "top_k": 3, "top_p": 0.7, "min_p": 0.1, "repeat_penalty": 1.5, "presence_penalty": 1}
    settings = infill(stage.url, **set_, **fields)["generation_settings"]
    assert settings.items() >= expected.items()
    assert settings["presence_penalty"] == (1 if expected.get("repeat_penalty") == 1.5 else 0)
    (request,) = stage.engine.requests
    assert not request.processors


def test_the_infill_sampler_ends_a_text_rather_than_guess(tiny_server: Server) -> None:
    """A random model has nothing to say."""
    assert infill(tiny_server.url, samplers=["top_k", "top_p", "infill"], n_predict=8)["stop_type"] == "eos"
    assert infill(tiny_server.url, samplers=["top_k", "top_p"], n_predict=8, seed=1)["content"]


def test_a_middle_can_be_held_to_an_expression(tiny_server: Server) -> None:
    said = infill(tiny_server.url, samplers=["top_k", "top_p", "infill"], regex="[a-c]{3}")
    assert re.fullmatch("[a-c]{3}", said["content"])
    body = {"model": tiny_server.model, "prompt": "a", "suffix": "b", "regex": "[a-c]{3}"}
    for path in ("/v1/completions", "/v1/fim/completions"):
        (choice,) = post(tiny_server.url, path, body).json()["choices"]
        assert re.fullmatch("[a-c]{3}", choice["message"]["content"] if "fim" in path else choice["text"])
        assert choice["finish_reason"] == "stop"


def test_numbers_of_llama_cpp_mean_what_they_mean_there(stage: Stage) -> None:
    stage.engine.scripts = [stage.script("x", DONE) for _ in range(3)]
    assert infill(stage.url, seed=-1)["generation_settings"]["seed"] not in (-1, None)
    assert infill(stage.url, n_predict=-1)["tokens_predicted"] == 1
    assert infill(stage.url, max_tokens=7)["generation_settings"]["n_predict"] == 7
    unlimited = stage.engine.requests[1]
    assert unlimited.max_tokens == 4096 - len(unlimited.prompt)


def test_tokens_are_sent_to_who_wants_them(stage: Stage, tokenizer: Tokenizer) -> None:
    stage.engine.scripts = [stage.script("turn x", DONE) for _ in range(2)]
    assert infill(stage.url, return_tokens=True)["tokens"] == tokenizer.encode("turn x")
    assert infill(stage.url)["tokens"] == []


@pytest.mark.parametrize(
    ("fields", "truncated"),
    [
        ({"input_extra": [{"text": "pass\n" * 500} for _ in range(8)]}, True),
        ({"input_extra": [{"text": "pass\n" * 500} for _ in range(2)]}, False),
        ({"input_prefix": "x\n" * 9000}, True),
        ({"input_suffix": "x\n" * 9000}, True),
    ],
)
def test_what_does_not_fit_is_left_out(stage: Stage, fields: dict[str, Any], truncated: bool) -> None:
    stage.engine.scripts = [stage.script("x", DONE)]
    said = infill(stage.url, **fields)
    assert said["truncated"] == truncated
    assert (3000 if truncated else 2000) < said["tokens_evaluated"] <= 4096 - 256


@pytest.mark.parametrize("fields", [{}, {"model": ""}, {"model": None}])
def test_the_only_model_need_not_be_named(stage: Stage, fields: dict[str, Any]) -> None:
    stage.engine.scripts = [stage.script("x", DONE)]
    assert infill(stage.url, **fields)["model"] == "actor"


def test_another_model_is_not_found(stage: Stage) -> None:
    response = post(stage.url, "/infill", {"input_prefix": "", "input_suffix": "", "model": "gpt-99"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_an_error_before_the_text_is_told_and_later_the_text_ends(stage: Stage) -> None:
    broken = FinishEvent("error", EngineError("It broke."))
    stage.engine.scripts = [[[START], [broken]], [[START], *stage.says("x"), [broken]]]
    body = {"input_prefix": "", "input_suffix": "", "stream": True}
    (error,) = events(post(stage.url, "/infill", body))
    validator("ErrorEnvelope").validate(error)
    *_, last = events(post(stage.url, "/infill", body))
    assert (last["stop"], last["stop_type"]) == (True, "limit")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 1}, "input_suffix"),
        ({"input_extra": {}}, "input_extra"),
        ({"input_extra": [{"filename": "ok"}]}, "input_extra.0.text"),
        ({"input_extra": [{"filename": 123, "text": "abc"}]}, "input_extra.0.filename"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"n_predict": -2}, "n_predict"),
        ({"n_cmpl": 0}, "n_cmpl"),
        ({"samplers": ["mirostat"]}, "samplers.0"),
        ({"samplers": "edkypmxt"}, "samplers"),
        ({"lora": [{"id": 0, "scale": 0.5}]}, "lora"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"json_schema": {}}, "json_schema"),
        ({"n_probs": 3}, "n_probs"),
        ({"stream_options": {}}, "stream_options"),
        ({"mirostat": 1}, "mirostat"),
    ],
)
def test_what_cannot_be_honoured_is_refused(stage: Stage, fields: dict[str, Any], param: str) -> None:
    response = post(stage.url, "/infill", {"input_prefix": "", "input_suffix": ""}, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_backends_of_plugins_are_asked_in_openais_words() -> None:
    body = {**LLAMA_VIM, "max_tokens": 9, "n_predict": 128, "input_extra": None, "stop": [";"]}
    asked = parse(InfillRequest, json.dumps(body).encode()).as_completion("actor")
    completion = parse(CompletionRequest, json.dumps(asked).encode())
    assert (completion.prompt, completion.suffix) == (PREFIX + LINE, SUFFIX)
    assert (completion.max_tokens, completion.stops, completion.top_k, completion.model) == (128, (";",), 40, "actor")
    asked = parse(FimCompletionRequest, json.dumps({"model": "actor", **CONTINUE}).encode()).as_completion()
    completion = parse(CompletionRequest, json.dumps(asked).encode())
    assert (completion.prompt, completion.suffix, completion.stream) == ("def f(", "return x", True)


# --- Latency ----------------------------------------------------------------------------------------------------------


def metric(server: Server, name: str) -> float:
    text = httpx2.get(f"{server.url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"jackfield_{name}{{"))


def wait_for(server: Server, name: str, value: float) -> None:
    deadline = time.monotonic() + PATIENCE
    while metric(server, name) != value:
        assert time.monotonic() < deadline, f"{name} is {metric(server, name)}, not {value}"
        time.sleep(0.01)


def unseen(tag: str) -> list[dict[str, str]]:
    """Files that no other request has sent."""
    return [{"filename": f"{tag}.py", "text": f"# {tag}\n" + "def f(x):\n    return x\n" * 40}]


def test_a_request_for_nothing_reads_the_files_ahead(tiny_server: Server) -> None:
    files = unseen("ahead")
    before = metric(tiny_server, "generation_tokens_total")
    assert post(tiny_server.url, "/infill", WARM_UP, input_extra=files).text == "{}"
    assert metric(tiny_server, "generation_tokens_total") == before
    said = infill(tiny_server.url, input_extra=files, prompt=LINE, n_predict=1)
    assert said["tokens_cached"] > 350
    assert said["timings"]["cache_n"] == said["tokens_cached"]
    assert said["timings"]["prompt_n"] == said["tokens_evaluated"] - said["tokens_cached"] < 70


def test_nothing_is_said_of_what_was_read_ahead(tiny_server: Server) -> None:
    said = post(tiny_server.url, "/infill", WARM_UP, input_extra=unseen("whole"), response_fields=None).json()
    validator("InfillAnswer").validate(said)
    assert (said["content"], said["tokens_predicted"], said["stop_type"]) == ("", 0, "limit")
    assert said["tokens_evaluated"] > 350


@pytest.mark.parametrize("stream", [True, False])
def test_the_next_keystroke_stops_the_work_and_finds_it_done(tiny_server: Server, stream: bool) -> None:
    files, limit = unseen(f"keystroke {stream}"), 3000
    body = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "input_extra": files, "n_predict": limit, "stream": stream}
    before = metric(tiny_server, "generation_tokens_total")
    with closing(http.client.HTTPConnection(tiny_server.url.removeprefix("http://"), timeout=PATIENCE)) as connection:
        connection.request("POST", "/infill", json.dumps({**body, "prompt": "    r", "ignore_eos": True, "seed": 1}))
        wait_for(tiny_server, "num_requests_running", 1)
    wait_for(tiny_server, "num_requests_running", 0)
    assert metric(tiny_server, "generation_tokens_total") - before < limit
    said = infill(tiny_server.url, **{**body, "stream": False, "n_predict": 1, "prompt": "    re"})
    assert said["tokens_cached"] > 350
    assert said["tokens_evaluated"] - said["tokens_cached"] < 70


def test_the_unchanged_part_of_a_prefix_is_cached_for_suffix_too(tiny_server: Server) -> None:
    prefix = "# suffix\n" + "x = 1\n" * 60
    cached = []
    for typed in ("y", "y =", "y = x"):
        body = {"model": tiny_server.model, "prompt": prefix + typed, "suffix": SUFFIX, "max_tokens": 1}
        usage = post(tiny_server.url, "/v1/completions", body).json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert min(cached[1:]) >= 224
