"""What clients really send is understood, and what cannot be honoured is refused with a readable 400."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import ModelInfo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types import Completion as SdkCompletion
from openai.types import Model as SdkModel
from openai.types.chat import ChatCompletion as SdkChatCompletion
from openai.types.chat import ChatCompletionChunk as SdkChatCompletionChunk

from contract import validator
from jackfield.errors import InvalidRequestError
from jackfield.protocol.base import AnswerModel
from jackfield.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from jackfield.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
)
from jackfield.protocol.fim import FimCompletionRequest
from jackfield.protocol.hints import FOREIGN, OUT_OF_RANGE
from jackfield.protocol.infill import InfillRequest
from jackfield.protocol.logprobs import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from jackfield.protocol.messages import AssistantMessage
from jackfield.protocol.models import Model, ModelList
from jackfield.protocol.parsing import MAX_DEPTH, parse
from jackfield.protocol.responses.request import ResponseRequest
from jackfield.protocol.sampling import Sampling, SamplingRequest
from jackfield.protocol.usage import Usage

Body = dict[str, Any]
HELLO = {"role": "user", "content": "hi"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {
                "city": {"type": ["string", "null"], "enum": ["Paris", None]},
                "days": {"exclusiveMinimum": 0},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": False,
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


def chat(**fields: Any) -> Body:
    return {"model": "m", "messages": [HELLO], **fields}


def said(*messages: Any) -> Body:
    return {"model": "m", "messages": list(messages)}


def text(**fields: Any) -> Body:
    return {"model": "m", "prompt": "hi", **fields}


def parse_chat(body: Body) -> ChatCompletionRequest:
    return parse(ChatCompletionRequest, json.dumps(body).encode())


def parse_text(body: Body) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps(body).encode())


# ---------------------------------------------------------------------------------------- real clients

STREAM = {"stream": True, "stream_options": {"include_usage": True}}
SYSTEM = {"role": "system", "content": "Be brief."}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CHAT_CLIENTS: dict[str, Body] = {
    "ai-sdk json_object": chat(response_format={"type": "json_object"}),
    "ai-sdk json_schema": chat(
        response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True, "name": "response"}}
    ),
    "ai-sdk sampling": chat(
        max_tokens=16, temperature=0, top_p=0.9, frequency_penalty=0.1, presence_penalty=0.1, stop=["\n\n"], seed=1
    ),
    "ai-sdk stream": chat(tools=[TOOL], tool_choice="auto", **STREAM),
    "ai-sdk named tool": chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}),
    "cn after a tool": {
        **said(
            SYSTEM,
            HELLO,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "", "tool_call_id": "call_1"},
        ),
        "tools": [TOOL],
        **STREAM,
    },
    "langchain image": said(
        {
            "content": [
                {"type": "text", "text": "what"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            ],
            "role": "user",
        }
    ),
    "langchain logprobs": chat(logprobs=True, n=2, stream=False, top_logprobs=2),
    "langchain required": chat(
        max_completion_tokens=32, parallel_tool_calls=False, stop=["\n\n"], tool_choice="required", tools=[TOOL]
    ),
    "llm schema": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA}}, **STREAM
    ),
    "openai-js developer": {
        **said({"role": "developer", "content": "x"}, HELLO),
        "max_completion_tokens": 16,
        "reasoning_effort": "low",
    },
    "openai-py all fields": {
        **said(
            {"role": "developer", "content": [{"type": "text", "text": "x"}]},
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "bob"},
        ),
        "service_tier": "auto",
        "frequency_penalty": 0.1,
        "logit_bias": {"5": 1},
        "logprobs": True,
        "max_completion_tokens": 8,
        "metadata": {"a": "b"},
        "modalities": ["text"],
        "n": 2,
        "prediction": {"type": "content", "content": "x"},
        "presence_penalty": 0.1,
        "prompt_cache_key": "k",
        "reasoning_effort": "low",
        "safety_identifier": "s",
        "seed": 3,
        "stop": ["a", "b"],
        "store": False,
        "temperature": 0,
        "top_logprobs": 3,
        "top_p": 0.5,
        "user": "u",
        "verbosity": "low",
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "opencode title": {**said(SYSTEM, HELLO, HELLO), "max_tokens": 512, **STREAM},
    "pi after a tool": {
        **said(
            SYSTEM,
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": [{"type": "text", "text": "(no output)"}], "tool_call_id": "call_1"},
        ),
        "store": False,
        "max_completion_tokens": 13107,
        "tools": [TOOL],
        **STREAM,
    },
    "several system messages": said(SYSTEM, {"role": "system", "content": [{"type": "text", "text": "x"}]}, HELLO),
    "assistant without content": said({"role": "assistant", "tool_calls": [CALL]}, HELLO),
    "history with other servers' keys": said(
        {
            "role": "assistant",
            "content": "hi",
            "reasoning_content": "hm",
            "provider_specific_fields": {"a": None},
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [],
        },
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
    ),
    "tool without parameters": chat(tools=[{"type": "function", "function": {"name": "now"}, "cache_control": {}}]),
    "load tool": chat(ignore_eos=True, stream=True, stream_options={"continuous_usage_stats": True}, max_tokens=32000),
    "vllm priority": chat(priority=-5),
    "jackfield": chat(priority=100.0, timeout=0.5, jackfield=True),
    "both limits": chat(max_tokens=10, max_completion_tokens=10),
    "every optional field null": {
        name: None for name in ChatCompletionRequest.model_fields if name not in ("model", "messages")
    }
    | chat(),
}
TEXT_CLIENTS: dict[str, Body] = {
    "ai-sdk": text(max_tokens=5, stop=["\nuser:"]),
    "continue": text(
        prompt="<fim_prefix>def f(<fim_suffix>return x<fim_middle>",
        stream=True,
        max_tokens=64,
        temperature=0.01,
        stop=["<fim_prefix>", "<fim_suffix>", "\n\n", "<|endoftext|>", "<|file_sep|>", "/src/", "```"],
    ),
    "openai-py echo": text(echo=True, logprobs=1, max_tokens=4),
    "lm-eval": text(prompt=[[1, 2, 3], [4]], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234),
    "sglang bench": text(best_of=1, ignore_eos=True, temperature=0.0, max_tokens=128, stream=False),
    "jackfield": text(priority=-100, timeout=86400, jackfield={"a": {"b": [1]}}),
    "several texts": text(prompt=["a", "b"], n=2, best_of=2),
    "token ids": text(prompt=[1, 2, 3]),
    "empty suffix": text(suffix=""),
    "every optional field null": {
        name: None for name in CompletionRequest.model_fields if name not in ("model", "prompt")
    }
    | text(),
}


@pytest.mark.parametrize("body", CHAT_CLIENTS.values(), ids=CHAT_CLIENTS.keys())
def test_real_chat_requests(body: Body) -> None:
    request = parse_chat(body)
    assert json.loads(request.model_dump_json(exclude_unset=True, by_alias=True)) == body
    validator("ChatCompletionRequest").validate(body)


@pytest.mark.parametrize("body", TEXT_CLIENTS.values(), ids=TEXT_CLIENTS.keys())
def test_real_completion_requests(body: Body) -> None:
    request = parse_text(body)
    assert json.loads(request.model_dump_json(exclude_unset=True, by_alias=True)) == body
    validator("CompletionRequest").validate(body)


def test_what_is_ignored_is_told() -> None:
    assert set(parse_chat(CHAT_CLIENTS["openai-py all fields"]).ignored()) == {
        "user",
        "safety_identifier",
        "metadata",
        "store",
        "service_tier",
        "prompt_cache_key",
        "verbosity",
        "prediction",
    }
    options = {"stream": True, "stream_options": {"include_obfuscation": True}}
    assert set(parse_chat(chat(**options)).ignored()) == {"stream_options.include_obfuscation"}
    assert parse_text(text(cache_prompt=True)).ignored().keys() == {"cache_prompt"}
    assert parse_chat(CHAT_CLIENTS["every optional field null"]).ignored() == {}


# ---------------------------------------------------------------------------------------- conveniences


def test_two_names_for_the_limit() -> None:
    assert parse_chat(chat()).token_limit is None
    assert parse_chat(chat(max_tokens=5)).token_limit == 5
    assert parse_chat(chat(max_completion_tokens=6)).token_limit == 6
    assert parse_chat(chat(max_tokens=5, max_completion_tokens=6)).token_limit == 5
    assert parse_chat(chat(max_tokens=7, max_completion_tokens=6)).token_limit == 6
    assert parse_text(text(max_tokens=5)).token_limit == 5


@pytest.mark.parametrize(("stop", "stops"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stops(stop: Any, stops: tuple[str, ...]) -> None:
    assert parse_chat(chat(stop=stop)).stops == stops


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2.0], [[1, 2]]), ([[1], [2.0, 3]], [[1], [2, 3]])],
)
def test_prompts(prompt: Any, prompts: list[Any]) -> None:
    found = parse_text(text(prompt=prompt)).prompts
    assert found == prompts
    assert all(type(token) is int for tokens in found if isinstance(tokens, list) for token in tokens)


def test_media_is_found() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "x", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}},
        {"type": "file", "file": {"file_id": "x"}},
    ]
    request = parse_chat(said(SYSTEM, {"role": "user", "content": parts}))
    found = [
        ("messages.1.content.1", "image_url"),
        ("messages.1.content.2", "input_audio"),
        ("messages.1.content.3", "file"),
    ]
    assert list(request.media()) == found


@pytest.mark.parametrize(
    ("keys", "reasoning"),
    [
        ({}, None),
        ({"reasoning_content": "a"}, "a"),
        ({"reasoning": "b"}, "b"),
        ({"reasoning": {"summary": []}}, None),
        ({"reasoning_content": "a", "reasoning": "b"}, "a"),
    ],
)
def test_reasoning_in_history(keys: Body, reasoning: str | None) -> None:
    message = parse_chat(said({"role": "assistant", "content": "x", **keys})).messages[0]
    assert isinstance(message, AssistantMessage)
    assert message.reasoning == reasoning


def test_whole_floats_are_integers() -> None:
    request = parse_chat(chat(n=2.0, seed=-3.0))
    assert (request.n, request.seed) == (2, -3)
    assert type(request.n) is int


# ---------------------------------------------------------------------------------------- refusals

CHAT_REFUSALS: list[tuple[Body, str | None, str]] = [
    ({}, "model", "missing_required_parameter"),
    ({"model": "m"}, "messages", "missing_required_parameter"),
    (chat(model=None), "model", "invalid_type"),
    (chat(model=""), "model", "empty_string"),
    (said(), "messages", "empty_array"),
    (chat(messages="hi"), "messages", "invalid_type"),
    (chat(temprature=1), "temprature", "unknown_parameter"),
    (chat(guided_json={}), "guided_json", "unknown_parameter"),
    (chat(temperature=2.1), "temperature", "decimal_above_max_value"),
    (chat(temperature=-0.1), "temperature", "decimal_below_min_value"),
    (chat(temperature=True), "temperature", "invalid_type"),
    (chat(temperature="1"), "temperature", "invalid_type"),
    (chat(temperature=10**400), "temperature", "invalid_type"),
    (chat(top_p=0), "top_p", "decimal_below_min_value"),
    (chat(top_k=-2), "top_k", "integer_below_min_value"),
    (chat(top_k=1.5), "top_k", "invalid_type"),
    (chat(repetition_penalty=0), "repetition_penalty", "decimal_below_min_value"),
    (chat(seed=2**63), "seed", "integer_above_max_value"),
    (chat(n=0), "n", "integer_below_min_value"),
    (chat(n=129), "n", "integer_above_max_value"),
    (chat(n=True), "n", "invalid_type"),
    (chat(max_tokens=-1), "max_tokens", "integer_below_min_value"),
    (chat(max_completion_tokens=0), "max_completion_tokens", "integer_below_min_value"),
    (chat(priority=-101), "priority", "integer_below_min_value"),
    (chat(priority=101), "priority", "integer_above_max_value"),
    (chat(priority=0.5), "priority", "invalid_type"),
    (chat(priority="high"), "priority", "invalid_type"),
    (chat(timeout=0), "timeout", "decimal_below_min_value"),
    (chat(timeout=-1.5), "timeout", "decimal_below_min_value"),
    (chat(timeout=86401), "timeout", "decimal_above_max_value"),
    (chat(timeout="30"), "timeout", "invalid_type"),
    (chat(timeout=True), "timeout", "invalid_type"),
    (chat(jackfield=1), "jackfield", "invalid_type"),
    (chat(jackfield=[]), "jackfield", "invalid_type"),
    (chat(jackfield={"logging": True}), "jackfield.logging", "invalid_type"),
    (chat(stop=""), "stop", "empty_string"),
    (chat(stop=["a", ""]), "stop.1", "empty_string"),
    (chat(stop=5), "stop", "invalid_type"),
    (chat(stop=["a"] * 65), "stop", "array_above_max_length"),
    (chat(logit_bias={"the": 1}), "logit_bias.the", "invalid_value"),
    (chat(logit_bias={"07": 1}), "logit_bias.07", "invalid_value"),
    (chat(logit_bias={"5": 101}), "logit_bias.5", "decimal_above_max_value"),
    (chat(logprobs=1), "logprobs", "invalid_type"),
    (chat(top_logprobs=2), "top_logprobs", "invalid_value"),
    (chat(logprobs=False, top_logprobs=2), "top_logprobs", "invalid_value"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs", "integer_above_max_value"),
    (chat(stream="yes"), "stream", "invalid_type"),
    (chat(stream_options={}), "stream_options", "invalid_value"),
    (chat(stream=False, stream_options={"include_usage": True}), "stream_options", "invalid_value"),
    (chat(stream=True, stream_options={"usage": True}), "stream_options.usage", "unknown_parameter"),
    (chat(tools={}), "tools", "invalid_type"),
    (chat(tools=[{}]), "tools.0.type", "missing_required_parameter"),
    (chat(tools=[{"type": "custom", "custom": {"name": "x"}}]), "tools.0.type", "unsupported_value"),
    (chat(tools=[{"type": "function"}]), "tools.0.function", "missing_required_parameter"),
    (chat(tools=[TOOL, {"type": "function", "function": {}}]), "tools.1.function.name", "missing_required_parameter"),
    (chat(tool_choice="any", tools=[TOOL]), "tool_choice", "invalid_value"),
    (chat(tool_choice=1, tools=[TOOL]), "tool_choice", "invalid_type"),
    (chat(tool_choice="required"), "tool_choice", "invalid_value"),
    (chat(tool_choice="required", tools=[]), "tool_choice", "invalid_value"),
    (chat(tool_choice={"type": "allowed_tools"}, tools=[TOOL]), "tool_choice.type", "unsupported_value"),
    (chat(tool_choice={"type": "custom"}, tools=[TOOL]), "tool_choice.type", "unsupported_value"),
    (chat(tool_choice={"type": "tool"}, tools=[TOOL]), "tool_choice.type", "invalid_value"),
    (
        chat(tool_choice={"type": "function", "function": {"name": "x"}}, tools=[TOOL]),
        "tool_choice.function.name",
        "invalid_value",
    ),
    (chat(response_format="json"), "response_format", "invalid_type"),
    (chat(response_format={"type": "xml"}), "response_format.type", "invalid_value"),
    (chat(response_format={"type": "json_object", "schema": {}}), "response_format.schema", "unknown_parameter"),
    (chat(response_format={"type": "json_schema"}), "response_format.json_schema", "missing_required_parameter"),
    (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": "{}"}}),
        "response_format.json_schema.schema",
        "invalid_type",
    ),
    (chat(reasoning_effort="most"), "reasoning_effort", "invalid_value"),
    (chat(modalities=["text", "audio"]), "modalities.1", "unsupported_value"),
    (chat(modalities=[]), "modalities", "empty_array"),
    (chat(audio={"voice": "alloy", "format": "wav"}), "audio", "unsupported_parameter"),
    (chat(web_search_options={}), "web_search_options", "unsupported_parameter"),
    (chat(moderation={}), "moderation", "unsupported_parameter"),
    (chat(functions=[]), "functions", "unsupported_parameter"),
    (chat(function_call="auto"), "function_call", "unsupported_parameter"),
    (chat(metadata="x"), "metadata", "invalid_type"),
    (said("hi"), "messages.0", "invalid_type"),
    (said(HELLO, None), "messages.1", "invalid_type"),
    (said({"content": "hi"}), "messages.0.role", "missing_required_parameter"),
    (said({"role": ["user"], "content": "hi"}), "messages.0.role", "invalid_type"),
    (said({"role": "human", "content": "hi"}), "messages.0.role", "invalid_value"),
    (said({"role": "function", "name": "f", "content": "hi"}), "messages.0.role", "unsupported_value"),
    (said({"role": "user"}), "messages.0.content", "missing_required_parameter"),
    (said({"role": "user", "content": None}), "messages.0.content", "invalid_type"),
    (said({"role": "user", "content": {"type": "text"}}), "messages.0.content", "invalid_type"),
    (said({"role": "user", "content": ["hi"]}), "messages.0.content.0", "invalid_type"),
    (said({"role": "user", "content": [{"text": "hi"}]}), "messages.0.content.0.type", "missing_required_parameter"),
    (said({"role": "user", "content": [{"type": "video"}]}), "messages.0.content.0.type", "invalid_value"),
    (
        said({"role": "user", "content": [{"type": "text", "text": None}]}),
        "messages.0.content.0.text",
        "invalid_type",
    ),
    (said({"role": "tool", "content": "x"}), "messages.0.tool_call_id", "missing_required_parameter"),
    (
        said({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]}),
        "messages.0.tool_calls.0.function.arguments",
        "invalid_type",
    ),
    (
        said({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}),
        "messages.0.tool_calls.0.type",
        "unsupported_value",
    ),
    (
        said({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}),
        "messages.0.tool_calls.0.id",
        "invalid_type",
    ),
    (
        said({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}),
        "messages.0.function_call",
        "unsupported_parameter",
    ),
    (said({"role": "user", "content": "\ud800"}), "messages.0.content", "invalid_value"),
    (said({"role": "user", "content": "x", "\udfff": "x"}), "messages.0", "invalid_value"),
    (chat(stop=["a", "\udc00"]), "stop.1", "invalid_value"),
    (chat(metadata={"a": [{"b": "\ud83d"}]}), "metadata.a.0.b", "invalid_value"),
]
TEXT_REFUSALS: list[tuple[Body, str | None, str]] = [
    ({"model": "m"}, "prompt", "missing_required_parameter"),
    (text(prompt=None), "prompt", "invalid_type"),
    (text(prompt={}), "prompt", "invalid_type"),
    (text(prompt=[]), "prompt", "empty_array"),
    (text(prompt=[[]]), "prompt.0", "empty_array"),
    (text(prompt=["a", 1]), "prompt.1", "invalid_type"),
    (text(prompt=[1, "a"]), "prompt.1", "invalid_type"),
    (text(prompt=[True]), "prompt.0", "invalid_type"),
    (text(prompt=[1, -1]), "prompt.1", "integer_below_min_value"),
    (text(prompt=[[1], [1.5]]), "prompt.1.0", "invalid_type"),
    (text(prompt=[[1], "a"]), "prompt.1", "invalid_type"),
    (text(suffix="return x", echo=True, logprobs=1), "logprobs", "unsupported_value"),
    (text(best_of=2), "best_of", "unsupported_value"),
    (text(best_of=2, n=3), "best_of", "unsupported_value"),
    (text(logprobs=6), "logprobs", "integer_above_max_value"),
    (text(logprobs=True), "logprobs", "invalid_type"),
    (text(stream_options={}), "stream_options", "invalid_value"),
    (text(priority=101), "priority", "integer_above_max_value"),
    (text(timeout=0), "timeout", "decimal_below_min_value"),
    (text(jackfield="yes"), "jackfield", "invalid_type"),
    (text(messages=[HELLO]), "messages", "unknown_parameter"),
]


def refused(model: type[Sampling], body: Body | bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(model, body if isinstance(body, bytes) else json.dumps(body).encode())
    error = caught.value
    validator("ErrorEnvelope").validate(error.envelope())
    json.dumps(error.envelope(), ensure_ascii=False).encode()
    return error


@pytest.mark.parametrize(("body", "param", "code"), CHAT_REFUSALS, ids=lambda value: str(value)[-60:])
def test_chat_refusals(body: Body, param: str | None, code: str) -> None:
    error = refused(ChatCompletionRequest, body)
    assert (error.param, error.error_code) == (param, code)
    assert str(param) in error.message or "surrogate" in error.message


@pytest.mark.parametrize(("body", "param", "code"), TEXT_REFUSALS, ids=lambda value: str(value)[-60:])
def test_completion_refusals(body: Body, param: str | None, code: str) -> None:
    error = refused(CompletionRequest, body)
    assert (error.param, error.error_code) == (param, code)
    assert str(param) in error.message


@pytest.mark.parametrize(
    ("body", "message", "suggestion"),
    [
        (chat(temprature=1), "Unknown parameter: 'temprature'.", "Did you mean 'temperature'?"),
        (chat(zzz=1), "Unknown parameter: 'zzz'.", "Leave it out."),
        (chat(repeat_penalty=1), "Unknown parameter: 'repeat_penalty'.", "Use 'repetition_penalty'."),
        (
            chat(max_tokens=-1),
            "Invalid 'max_tokens': expected a value >= 1, but got -1.",
            "Leave it out to get as many tokens as the context leaves.",
        ),
        (
            said({"role": "usr", "content": "hi"}),
            "Invalid value for 'messages.0.role': 'usr'. "
            "Supported: 'system', 'developer', 'user', 'assistant', 'tool'.",
            "Did you mean 'user'?",
        ),
        (
            chat(tool_choice={"type": "function", "function": {"name": "x"}}, tools=[TOOL]),
            None,
            "Use one of: get_weather.",
        ),
        (chat(functions=[]), "'functions' is not supported here.", None),
        (chat(max_time=1), "Unknown parameter: 'max_time'.", "Use 'timeout', in seconds."),
    ],
)
def test_refusals_say_what_to_do(body: Body, message: str | None, suggestion: str | None) -> None:
    error = refused(ChatCompletionRequest, body)
    assert message is None or error.message == message
    assert error.suggestions if suggestion is None else error.suggestions == (suggestion,)


def test_hints_are_for_names_that_are_not_fields() -> None:
    known = ChatCompletionRequest.model_fields.keys() | CompletionRequest.model_fields.keys()
    assert not FOREIGN.keys() & known
    assert not ResponseRequest.hints.keys() & ResponseRequest.model_fields.keys()
    assert OUT_OF_RANGE.keys() <= known | ResponseRequest.model_fields.keys()


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid_json", "empty"),
        (b" \n", "invalid_json", "empty"),
        (b"{", "invalid_json", "line 1, column 2"),
        (b"[]", "invalid_type", "an array"),
        (b"null", "invalid_type", "null"),
        (b'"hi"', "invalid_type", "a string"),
        (b'{"model": "\xff"}', "invalid_json", "UTF-8"),
        ('{"model": "m"}'.encode("utf-16"), "invalid_json", "UTF-8"),
        (b'{"model": "a", "model": "b"}', "invalid_json", "'model' twice"),
        (b'{"model": "a", "messages": [{"role": "user", "role": "tool"}]}', "invalid_json", "'role' twice"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "invalid_json", "twice"),
        (b'{"temperature": NaN}', "invalid_json", "NaN"),
        (b'{"temperature": -Infinity}', "invalid_json", "-Infinity"),
        (b'{"temperature": 1e999}', "invalid_json", "too large"),
        (b'{"seed": ' + b"1" * 10_000 + b"}", "invalid_json", "too large"),
        (b"[" * 1_000_000, "invalid_json", "nested"),
        (b'{"a": ' * 1000 + b"1" + b"}" * 1000, "invalid_json", "nested"),
        (b'{"a": ' * (MAX_DEPTH + 2) + b"1" + b"}" * (MAX_DEPTH + 2), "invalid_json", "nested"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bodies_that_are_not_proper_json(body: bytes, code: str, words: str) -> None:
    error = refused(ChatCompletionRequest, body)
    assert error.error_code == code
    assert words in error.message


def test_depth_that_is_allowed() -> None:
    deep: Any = {}
    for _ in range(MAX_DEPTH - 1):
        deep = {"a": deep}
    request = parse_chat(chat(metadata=deep))
    assert json.loads(request.model_dump_json(include={"metadata"})) == {"metadata": deep}


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse(ChatCompletionRequest, b"\xef\xbb\xbf" + json.dumps(chat()).encode()).model == "m"


def test_surrogate_pairs_are_text() -> None:
    assert parse(ChatCompletionRequest, json.dumps(chat(user="\N{GRINNING FACE}")).encode()).user == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    "body",
    [
        said({"role": "user", "content": "my secret", "tool_calls": 1}, "my secret"),
        said({"role": "user", "content": [{"type": "text", "text": ["my secret"]}]}),
        chat(stop=[["my secret"]]),
        chat(tools="my secret"),
        chat(prompt="my secret"),
    ],
)
def test_errors_do_not_repeat_texts(body: Body) -> None:
    assert "secret" not in json.dumps(refused(ChatCompletionRequest, body).envelope())


# ---------------------------------------------------------------------------------------- whatever comes

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
TELLING = [
    *(
        None,
        True,
        False,
        0,
        1,
        2,
        -1,
        -2,
        0.0,
        1.0,
        0.5,
        -0.5,
        2.5,
        5,
        6,
        21,
        129,
        101,
        1e300,
        2**63,
        -(2**63),
        10**400,
    ),
    *("", "a", "1", "auto", "required", "none", "text", "tool", "user", "function", "custom", "low", "json_object"),
    *([], {}, [1], [-1], [1.0], [1.5], ["a"], [""], ["text"], [[1]], [[]], [1, "a"], [None], [{}], ["a"] * 65),
    *({"a": 1}, {"5": 1}, {"5": 101}, {"05": 1}, {"type": "text"}, {"type": "function"}, {"include_usage": True}),
    *([HELLO], [TOOL], [CALL], {"type": "function", "function": {"name": "get_weather"}}, {"type": "json_object"}),
]
FULL_CHAT: Body = {
    **CHAT_CLIENTS["openai-py all fields"],
    **CHAT_CLIENTS["pi after a tool"],
    **STREAM,
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": None}},
    "max_tokens": 5,
    "parallel_tool_calls": True,
    "continue_final_message": False,
    "ignore_eos": False,
    "regex": None,
    "grammar": None,
    "cache_prompt": True,
    "priority": -5,
    "timeout": 30.5,
    "jackfield": True,
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {},
    "audio": None,
    "web_search_options": None,
    "moderation": None,
    "functions": None,
    "function_call": None,
}
FULL_CHAT["messages"] = [
    *FULL_CHAT["messages"],
    *CHAT_CLIENTS["langchain image"]["messages"],
    *CHAT_CLIENTS["history with other servers' keys"]["messages"],
    {"role": "developer", "content": [{"type": "refusal", "refusal": "no"}], "name": None},
    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]},
    {"role": "user", "content": [{"type": "file", "file": {"file_id": "x", "filename": None}}]},
]
FULL_TEXT: Body = {
    **TEXT_CLIENTS["every optional field null"],
    **TEXT_CLIENTS["continue"],
    **TEXT_CLIENTS["lm-eval"],
    "logit_bias": {"5": 1.5},
    "stream_options": {"include_usage": None},
    "suffix": "",
    "regex": None,
    "grammar": None,
    "n": 2,
    "best_of": 2,
    "priority": 3,
    "timeout": 60,
    "jackfield": True,
}
FULL_FIM: Body = {
    **{name: value for name, value in FULL_TEXT.items() if name in FimCompletionRequest.model_fields},
    "prompt": "def f(",
    "suffix": "return x",
    "random_seed": 7,
    "metadata": {"a": 1},
    "prompt_cache_key": "k",
    "min_tokens": None,
    "stream_options": None,
}
FULL_INFILL: Body = {
    **{name: value for name, value in FULL_TEXT.items() if name in InfillRequest.model_fields},
    "input_prefix": "def f(",
    "input_suffix": "return x",
    "input_extra": [{"filename": "a.py", "text": "x = 1", "time": [1, 2]}, {"text": "", "filename": None}],
    "prompt": "    re",
    "n_predict": 128,
    "n_cmpl": 3,
    "n_indent": 4,
    "t_max_predict_ms": 1000,
    "repeat_penalty": 1.1,
    "samplers": ["penalties", "top_k", "infill"],
    "response_fields": ["content", "timings/prompt_n"],
    "return_tokens": True,
    "id_slot": 0,
    "n_cache_reuse": 0,
    "n_keep": -1,
    "t_max_prompt_ms": 500,
    "stream_options": None,
    "lora": None,
    "grammar": None,
    "json_schema": None,
    "n_probs": None,
}
FULL: dict[type[SamplingRequest], Body] = {FimCompletionRequest: FULL_FIM, InfillRequest: FULL_INFILL}
FUNCTION: Body = {"type": "function", **TOOL["function"], "strict": None}
FULL_RESPONSE: Body = {
    "model": "m",
    "input": [
        {"role": "developer", "content": "Be brief.", "id": None},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}], "status": "completed"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:", "file_id": None, "detail": "auto"}]},
        {"role": "user", "content": [{"type": "input_file", "file_data": "x", "file_url": None, "filename": "a"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        {
            "type": "reasoning",
            "id": "rs",
            "summary": [{"type": "summary_text", "text": "a"}],
            "content": [{"type": "reasoning_text", "text": "b"}],
            "encrypted_content": None,
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": None},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "a"}]},
        {"type": "function_call_output", "call_id": "d", "output": "b", "id": "fco"},
        {"type": "web_search_call", "id": "ws"},
        {"type": "item_reference", "id": "msg"},
    ],
    "instructions": "Be brief.",
    "previous_response_id": None,
    "store": True,
    "metadata": {"a": "b"},
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    "max_output_tokens": 16,
    "top_logprobs": 2,
    "tools": [
        FUNCTION,
        {"type": "namespace", "name": "n", "description": None, "tools": [FUNCTION]},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]},
    "parallel_tool_calls": True,
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto", "generate_summary": None, "context": None, "mode": None},
    "truncation": "auto",
    "chat_template_kwargs": {"a": 1},
    **{name: FULL_CHAT[name] for name in Sampling.model_fields if name not in ("model", "stream")},
    "stream": True,
    "stream_options": {"include_obfuscation": False, "reasoning_summary_delivery": None},
    "access_programs": {},
    "client_metadata": {"a": "b"},
    "image": {},
    "max_tool_calls": 1,
    "prompt_cache_key": "k",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
    "user": "u",
    "background": False,
    "background_options": None,
    "context_management": None,
    "conversation": None,
    "moderation": None,
    "prompt": None,
}
SAID_IN_PROSE = {
    ("best_of", "unsupported_value"),
    ("logprobs", "unsupported_value"),
    ("tool_choice.function.name", "invalid_value"),
    ("regex", "invalid_value"),
    ("grammar", "invalid_value"),
    ("tool_choice", "invalid_value"),
    ("tool_choice.name", "invalid_value"),
    ("tool_choice.tools.0.name", "invalid_value"),
    ("continue_final_message", "invalid_value"),
}
"""Rules that a JSON Schema cannot say; ``openapi.yaml`` says them in its description."""


def verdict(model: type[Sampling], body: Any) -> tuple[str | None, str | None] | None:
    """None when the body is accepted, else the param and code of the refusal."""
    try:
        parse(model, json.dumps(body).encode())
    except InvalidRequestError as error:
        validator("ErrorEnvelope").validate(error.envelope())
        return error.param, error.error_code
    return None


def compare(model: type[Sampling], body: Any) -> None:
    """The document and the models accept the same."""
    refusal = verdict(model, body)
    problem = next(validator(model.__name__).iter_errors(body), None)
    assert (refusal is None) == (problem is None) or refusal in SAID_IN_PROSE, (refusal, problem)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


def changed(body: Body, path: tuple[Any, ...], change: Any) -> Body:
    """A copy with one value replaced, or without it."""
    copied = copy.deepcopy(body)
    holder: Any = copied
    for key in path[:-1]:
        holder = holder[key]
    if change is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = change
    return copied


def mutations(body: Body, fields: list[str]) -> st.SearchStrategy[Body]:
    place = st.sampled_from([*paths(body), *((name,) for name in fields if name not in body)])
    value = st.sampled_from(TELLING) | JSON
    return st.builds(lambda path, change: changed(body, path, change), place, value)


CHAT_MUTATIONS = mutations(FULL_CHAT, [*ChatCompletionRequest.model_fields, "unknown"])
TEXT_MUTATIONS = mutations(FULL_TEXT, [*CompletionRequest.model_fields, "unknown"])
RESPONSE_MUTATIONS = mutations(FULL_RESPONSE, [*ResponseRequest.model_fields, "unknown"])


def test_the_full_bodies_use_every_field() -> None:
    assert FULL_CHAT.keys() == ChatCompletionRequest.model_fields.keys()
    assert FULL_TEXT.keys() == CompletionRequest.model_fields.keys()
    assert FULL_RESPONSE.keys() == ResponseRequest.model_fields.keys()
    assert verdict(ResponseRequest, FULL_RESPONSE) is None
    assert verdict(ChatCompletionRequest, FULL_CHAT) is None
    assert verdict(CompletionRequest, FULL_TEXT) is None


@pytest.mark.parametrize("name", FULL_CHAT)
def test_the_document_accepts_what_chat_accepts(name: str) -> None:
    compare(ChatCompletionRequest, changed(FULL_CHAT, (name,), ...))
    for value in TELLING:
        compare(ChatCompletionRequest, changed(chat(), (name,), value))


@pytest.mark.parametrize("name", FULL_TEXT)
def test_the_document_accepts_what_completions_accept(name: str) -> None:
    compare(CompletionRequest, changed(FULL_TEXT, (name,), ...))
    for value in TELLING:
        compare(CompletionRequest, changed(text(), (name,), value))


@pytest.mark.parametrize("model", FULL)
def test_the_document_accepts_what_the_endpoints_for_a_middle_accept(model: type[SamplingRequest]) -> None:
    full = FULL[model]
    assert full.keys() == model.model_fields.keys()
    assert verdict(model, full) is None
    needed = {name: full[name] for name, field in model.model_fields.items() if field.is_required()}
    for name in full:
        compare(model, changed(full, (name,), ...))
        for value in TELLING:
            compare(model, changed(needed, (name,), value))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(FULL)).flatmap(lambda m: st.tuples(st.just(m), mutations(FULL[m], [*m.model_fields, "x"]))))
def test_the_document_accepts_what_they_accept_anywhere(drawn: tuple[type[SamplingRequest], Body]) -> None:
    compare(*drawn)


@settings(max_examples=300, deadline=None)
@given(CHAT_MUTATIONS)
@example(changed(FULL_CHAT, ("tool_choice", "function", "name"), "x"))
@example(changed(FULL_CHAT, ("logprobs",), ...))
@example(changed(FULL_CHAT, ("tools",), []))
@example(chat(tool_choice="required", tools=[]))
@example(changed(FULL_CHAT, ("stream",), ...))
@example(changed(FULL_CHAT, ("stream",), False))
def test_the_document_accepts_what_chat_accepts_anywhere(body: Body) -> None:
    compare(ChatCompletionRequest, body)


@settings(max_examples=150, deadline=None)
@given(TEXT_MUTATIONS)
def test_the_document_accepts_what_completions_accept_anywhere(body: Body) -> None:
    compare(CompletionRequest, body)


@pytest.mark.parametrize("name", FULL_RESPONSE)
def test_the_document_accepts_what_responses_accept(name: str) -> None:
    compare(ResponseRequest, changed(FULL_RESPONSE, (name,), ...))
    for value in TELLING:
        compare(ResponseRequest, changed({"model": "m", "input": "hi"}, (name,), value))


@settings(max_examples=300, deadline=None)
@given(RESPONSE_MUTATIONS)
@example(changed(FULL_RESPONSE, ("input", 0, "type"), None))
@example(changed(FULL_RESPONSE, ("input", 0), {"id": "x", "role": "robot", "content": "hi"}))
@example(changed(FULL_RESPONSE, ("input", 0), {"type": "item_reference", "id": "x", "role": "robot"}))
@example(changed(FULL_RESPONSE, ("input", 0), {"type": "message", "id": "x"}))
@example(changed(FULL_RESPONSE, ("tools",), []))
@example(changed(FULL_RESPONSE, ("tools",), ...))
@example(changed(FULL_RESPONSE, ("stream",), False))
def test_the_document_accepts_what_responses_accept_anywhere(body: Body) -> None:
    compare(ResponseRequest, body)


@settings(max_examples=100, deadline=None)
@given(JSON | st.dictionaries(st.sampled_from(list(FULL_CHAT)), JSON))
def test_any_json_is_accepted_or_refused(body: Any) -> None:
    compare(ChatCompletionRequest, body)


@settings(max_examples=100, deadline=None)
@given(st.binary() | st.builds(lambda a, b: json.dumps(FULL_TEXT).encode()[a:b], st.integers(0, 60), st.integers(60)))
def test_any_bytes_are_accepted_or_refused(body: bytes) -> None:
    try:
        parse(CompletionRequest, body)
    except InvalidRequestError as error:
        validator("ErrorEnvelope").validate(error.envelope())


# ---------------------------------------------------------------------------------------- answers

USAGE = Usage.of(5, 2, cached=4, reasoning=1)


def sent(answer: AnswerModel) -> Any:
    """What goes over the wire, which is what the document says."""
    body = json.loads(answer.to_json())
    validator(type(answer).__name__).validate(body)
    return body


def test_a_chat_completion() -> None:
    message = ChatMessage(content="hi")
    choice = ChatChoice(index=0, message=message, finish_reason="stop")
    body = sent(ChatCompletion(id="chatcmpl-1", created=1, model="m", choices=[choice], usage=USAGE))
    assert body == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }
    SdkChatCompletion.model_validate(body)


def test_a_chat_completion_with_everything() -> None:
    message = ChatMessage(
        content=None,
        reasoning_content="hm",
        tool_calls=[ToolCall(id="call_1", function=FunctionCall(name="f", arguments="{}"))],
    )
    top = TopLogprob(token="a", logprob=float("-inf"), bytes=[97])
    logprobs = ChatLogprobs(content=[TokenLogprob(token="\ufffd", logprob=-0.5, bytes=[240, 159], top_logprobs=[top])])
    choice = ChatChoice(index=0, message=message, logprobs=logprobs, finish_reason="tool_calls")
    body = sent(
        ChatCompletion(id="1", created=1, model="m", choices=[choice], usage=USAGE, system_fingerprint="jackfield")
    )
    assert body["choices"][0]["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    assert body["choices"][0]["logprobs"]["refusal"] is None
    assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] == -9999.0
    SdkChatCompletion.model_validate(body)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (ChatDelta(role="assistant", content=""), {"role": "assistant", "content": ""}),
        (ChatDelta(content="hi"), {"content": "hi"}),
        (ChatDelta(), {}),
        (ChatDelta(role=None, reasoning_content=None, tool_calls=None), {}),
        (ChatDelta(reasoning_content="hm"), {"reasoning_content": "hm"}),
        (
            ChatDelta(
                tool_calls=[
                    ToolCallDelta(index=0, id="1", type="function", function=FunctionCallDelta(name="f", arguments=""))
                ]
            ),
            {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        ),
        (
            ChatDelta(tool_calls=[ToolCallDelta(index=0, function=FunctionCallDelta(arguments="{"))]),
            {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_deltas_say_only_what_is_new(delta: ChatDelta, expected: Body) -> None:
    choice = ChatChunkChoice(index=0, delta=delta)
    body = sent(ChatCompletionChunk(id="1", created=1, model="m", choices=[choice]))
    assert body["choices"] == [{"index": 0, "delta": expected, "logprobs": None, "finish_reason": None}]
    assert body["object"] == "chat.completion.chunk"
    assert "usage" not in body
    SdkChatCompletionChunk.model_validate(body)


def test_usage_in_chunks_is_null_or_all_of_it() -> None:
    assert sent(ChatCompletionChunk(id="1", created=1, model="m", choices=[], usage=None))["usage"] is None
    body = sent(ChatCompletionChunk(id="1", created=1, model="m", choices=[], usage=USAGE))
    assert body["usage"]["total_tokens"] == 7
    SdkChatCompletionChunk.model_validate(body)


def test_a_completion() -> None:
    logprobs = CompletionLogprobs(
        tokens=["hi", " you"], token_logprobs=[None, -0.5], top_logprobs=[None, {" you": -0.5}], text_offset=[0, 2]
    )
    choice = CompletionChoice(index=0, text="hi you", logprobs=logprobs, finish_reason="length")
    body = sent(Completion(id="cmpl-1", created=1, model="m", choices=[choice], usage=USAGE))
    assert body["object"] == "text_completion"
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    plain = CompletionChoice(index=0, text="hi", finish_reason="stop")
    body = sent(Completion(id="cmpl-1", created=1, model="m", choices=[plain], usage=USAGE))
    assert body["choices"] == [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}]
    SdkCompletion.model_validate(body)


def test_a_completion_chunk() -> None:
    choice = CompletionChunkChoice(index=0, text="hi")
    body = sent(CompletionChunk(id="cmpl-1", created=1, model="m", choices=[choice]))
    assert body["choices"] == [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": None}]
    assert body["object"] == "text_completion"


def test_models() -> None:
    said: Body = {"id": "a/b", "created": 1, "owned_by": "jackfield", "context_length": 8192, "max_model_len": 8192}
    said |= {"display_name": "a/b", "created_at": "1970-01-01T00:00:01Z", "max_input_tokens": 8192, "max_tokens": 8192}
    said["jackfield"] = {"state": "unloaded", "aliases": ["c"], "pinned": False}
    body = sent(ModelList(data=[Model(**said)], first_id="a/b", last_id="a/b"))
    constant = {"object": "model", "type": "model", "capabilities": None, "lifecycle": "active"}
    assert body == {
        "object": "list",
        "data": [said | constant],
        "has_more": False,
        "first_id": "a/b",
        "last_id": "a/b",
    }
    SdkModel.model_validate(body["data"][0])
    ModelInfo.model_validate(body["data"][0])
