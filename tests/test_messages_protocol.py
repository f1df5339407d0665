"""What clients of ``/v1/messages`` really send is understood, and the document accepts what the models accept."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import validator
from jackfield.errors import InvalidRequestError
from jackfield.protocol.anthropic.request import BetaMessagesRequest, MessagesRequest, TokenCountRequest
from jackfield.protocol.parsing import parse
from test_protocol import JSON, TELLING, Body, changed, mutations

CACHED = {"cache_control": {"type": "ephemeral"}}
HI = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
CLAUDE_CODE: Body = {
    "model": "m",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>"}, {"type": "text", "text": "Hi"}]},
        {"role": "system", "content": [{"type": "text", "text": "# Environment", **CACHED}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "ToolSearch", "input": {"query": "select:Read"}}],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "tool_reference", "tool_name": "Read"}],
                    **CACHED,
                }
            ],
        },
    ],
    "system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2;"}, {"type": "text", "text": "You."}],
    "tools": [
        {"name": "ToolSearch", "description": "Fetches.", "input_schema": {"$schema": "x", **SCHEMA}},
        {"name": "Read", "input_schema": SCHEMA, "defer_loading": True},
    ],
    "metadata": {"user_id": "{}"},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}
"""As Claude Code 2.1 sends it, shortened."""

FULL: Body = {
    **CLAUDE_CODE,
    "stop_sequences": ["a"],
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 5,
    "tool_choice": {"type": "tool", "name": "Read", "disable_parallel_tool_use": True},
    "output_config": {"effort": None, "format": {"type": "json_schema", "schema": SCHEMA}, "task_budget": {}},
    "output_format": {"type": "json_schema", "schema": SCHEMA},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "priority": -5,
    "timeout": 30.5,
    "jackfield": True,
    "cache_control": {"type": "ephemeral"},
    "speed": "fast",
    "service_tier": "auto",
    "inference_geo": "eu",
    "diagnostics": {},
    "billing_policy": {},
    "fallbacks": "default",
    "fallback_credit_token": "t",
    "mcp_servers": None,
    "thread": None,
    "container": None,
    "compaction": None,
}
FULL["messages"] = [
    *CLAUDE_CODE["messages"],
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "Hello.", "citations": None},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "toolu_1",
                "is_error": False,
                "content": [
                    PICTURE,
                    {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "x"}]},
                ],
            },
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, "title": "t"},
            {"type": "document", "source": {"type": "content", "content": [PICTURE]}, "context": None},
        ],
    },
    {
        "role": "system",
        "clear_at": "never",
        "content": [
            {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "Read"}},
            {
                "type": "tool_addition",
                "tool": {"type": "tool_definition", "definition": {"name": "x", "input_schema": {}}},
            },
            {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "Read"}},
        ],
    },
]
COUNT = {name: value for name, value in FULL.items() if name in TokenCountRequest.model_fields}
Model = type[MessagesRequest] | type[TokenCountRequest]


def verdict(model: Model, body: Any) -> tuple[str | None, str | None] | None:
    """None when the body is accepted, else the param and code of the refusal."""
    try:
        parse(model, json.dumps(body).encode())
    except InvalidRequestError as error:
        return error.param, error.error_code
    return None


def compare(model: Model, body: Any) -> None:
    """The document and the models accept the same."""
    refusal = verdict(model, body)
    problem = next(validator(model.__name__).iter_errors(body), None)
    assert (refusal is None) == (problem is None) or is_in_prose(refusal), (refusal, problem)


def is_in_prose(refusal: tuple[str | None, str | None] | None) -> bool:
    """Whether a JSON Schema cannot say it: which names there are, and that the last message calls no tools."""
    param, code = refusal or (None, None)
    return code == "invalid_value" and (param == "tool_choice.name" or str(param).endswith(".content"))


def test_the_full_bodies_use_every_field() -> None:
    assert FULL.keys() == MessagesRequest.model_fields.keys()
    assert COUNT.keys() == TokenCountRequest.model_fields.keys()
    for model, body in ((MessagesRequest, FULL), (MessagesRequest, CLAUDE_CODE), (TokenCountRequest, COUNT)):
        assert verdict(model, body) is None
        compare(model, body)


@pytest.mark.parametrize("name", FULL)
def test_the_document_accepts_what_messages_accept(name: str) -> None:
    compare(MessagesRequest, changed(FULL, (name,), ...))
    for value in TELLING:
        compare(MessagesRequest, changed({"model": "m", "max_tokens": 1, "messages": [HI]}, (name,), value))


@pytest.mark.parametrize("name", COUNT)
def test_the_document_accepts_what_counts_accept(name: str) -> None:
    compare(TokenCountRequest, changed(COUNT, (name,), ...))
    for value in TELLING:
        compare(TokenCountRequest, changed({"model": "m", "messages": [HI]}, (name,), value))


@settings(max_examples=300, deadline=None)
@given(mutations(FULL, [*MessagesRequest.model_fields, "unknown"]))
def test_the_document_accepts_what_messages_accept_anywhere(body: Body) -> None:
    compare(MessagesRequest, body)


@settings(max_examples=100, deadline=None)
@given(JSON | st.dictionaries(st.sampled_from(list(FULL)), JSON))
def test_any_json_is_accepted_or_refused(body: Any) -> None:
    compare(MessagesRequest, body)


def test_every_optional_field_may_be_null() -> None:
    required = {"model", "messages", "max_tokens"}
    nulls = {name: None for name in FULL if name not in required}
    assert verdict(MessagesRequest, {**nulls, "model": "m", "max_tokens": 1, "messages": [HI]}) is None


def test_what_is_ignored_says_why() -> None:
    asked = parse(MessagesRequest, json.dumps(FULL).encode())
    assert asked.ignored().keys() == set(MessagesRequest.ignored_on_purpose)
    plain = parse(MessagesRequest, json.dumps({"model": "m", "max_tokens": 1, "messages": [HI]}).encode())
    assert plain.ignored() == {}


def test_what_only_betas_know_is_told_once_for_all() -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [HI], "new_one": 1, "new_two": {"a": 1}}
    assert parse(BetaMessagesRequest, json.dumps(body).encode()).ignored() == {
        "fields of betas": "Jackfield does not know new_one, new_two."
    }
