"""What ``openapi.yaml`` declares is what the application serves, and everything else is a clear error."""

import http.client
import json
import re
from typing import Any

import pytest
from starlette.routing import Route

from contract import declared_routes, validator
from jackfield import app
from serving import Server

SAMPLES = {
    ("GET", "/models"): None,
    ("GET", "/models/{model}"): None,
    ("POST", "/models/load"): {"model": ""},
    ("POST", "/models/unload"): {"model": ""},
    ("GET", "/plugins"): None,
    ("POST", "/chat/completions"): {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    ("POST", "/completions"): {"prompt": "Hi", "max_tokens": 1},
    ("POST", "/fim/completions"): {"prompt": "Hi", "max_tokens": 1},
    ("POST", "/infill"): {"input_prefix": "Hi", "input_suffix": "", "n_predict": 1},
    ("POST", "/responses"): {"input": "Hi", "max_output_tokens": 1},
    ("GET", "/responses/{response_id}"): None,
    ("DELETE", "/responses/{response_id}"): None,
    ("POST", "/responses/{response_id}/cancel"): None,
    ("GET", "/responses/{response_id}/input_items"): None,
    ("POST", "/messages"): {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    ("POST", "/messages/count_tokens"): {"messages": [{"role": "user", "content": "Hi"}]},
    ("POST", "/embeddings"): {"input": "Hi"},
    ("POST", "/tokenize"): {"prompt": "Hi"},
    ("POST", "/detokenize"): {"tokens": [1, 2]},
    ("POST", "/apply-template"): {"messages": [{"role": "user", "content": "Hi"}]},
    ("GET", "/tokenizer_info"): None,
}
"""A body for each route of the API."""


def answer(server: Server, method: str, path: str, body: object = None) -> tuple[int, http.client.HTTPMessage, Any]:
    """Status, headers and JSON; the body None when there is none."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        content = response.read()
        return response.status, response.headers, json.loads(content) if content else None
    finally:
        connection.close()


def served_routes() -> set[tuple[str, str]]:
    """As ``declared_routes`` writes them."""
    served = set()
    for route in app.routes:
        assert isinstance(route, Route)
        assert route.methods is not None
        served |= {(method, re.sub(":[^}]*}", "}", route.path)) for method in route.methods}
    return served


def test_routes_are_those_that_are_declared() -> None:
    served = served_routes()
    declared = declared_routes()
    # Starlette lets HEAD come with every GET; the document need not say so.
    unsaid = {("HEAD", path) for method, path in declared if method == "GET"} - declared
    assert served - unsaid == declared


def test_every_route_of_the_api_has_a_sample() -> None:
    assert {(method, path) for method, path in declared_routes() if f"/v1{path}" in paths()} == SAMPLES.keys()


def test_a_route_without_the_prefix_is_the_one_with_it() -> None:
    served = {
        (method, route.path): route.endpoint
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    prefixed = [(method, path) for method, path in served if path.startswith("/v1/") and method != "HEAD"]
    assert len(prefixed) == len(SAMPLES)
    for method, path in prefixed:
        assert served[method, path] is served[method, path.removeprefix("/v1")]


def paths() -> set[str]:
    return {path for _, path in declared_routes()}


@pytest.mark.parametrize(("method", "path"), SAMPLES, ids=[path for _, path in SAMPLES])
def test_routes_answer_with_and_without_the_prefix(tiny_server: Server, method: str, path: str) -> None:
    body = SAMPLES[method, path]
    body = body and {**body, "model": tiny_server.model}
    replies = [answer(tiny_server, method, prefix + real(tiny_server, path), body) for prefix in ("/v1", "")]
    # Nothing runs in the background that could be cancelled.
    assert [status for status, _, _ in replies] == [400 if path.endswith("/cancel") else 200] * 2
    assert len({said.get("object", tuple(said)) for _, _, said in replies}) == 1


def real(server: Server, path: str) -> str:
    """The path of something that is there."""
    if "{response_id}" not in path:
        return path.replace("{model}", server.model)
    body = {"model": server.model, "input": "Hi", "max_output_tokens": 1, "store": True}
    _, _, said = answer(server, "POST", "/v1/responses", body)
    return path.replace("{response_id}", said["id"])


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_status_answers(tiny_server: Server, path: str) -> None:
    status, _, said = answer(tiny_server, "GET", path)
    assert status == 200
    validator(path.strip("/").title()).validate(said)
    status, _, said = answer(tiny_server, "HEAD", path)
    assert (status, said) == (200, None)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/chat", "/v2/models", "/v1/v1/models", "/docs"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_there_is_told_in_the_envelope(tiny_server: Server, method: str, path: str) -> None:
    status, _, said = answer(tiny_server, method, path)
    assert status == 404
    validator("ErrorEnvelope").validate(said)
    assert path in said["error"]["message"]
    assert said["error"]["suggestions"]


@pytest.mark.parametrize(("right", "path"), sorted(r for r in declared_routes() if r[0] != "HEAD"), ids=str)
def test_a_wrong_method_is_told_in_the_envelope(tiny_server: Server, right: str, path: str) -> None:
    for wrong in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {
        method for method, one in declared_routes() if one == path
    }:
        there = path.replace("{model}", "any").replace("{response_id}", "resp_any")
        if wrong == "GET" and path.endswith(("/models/load", "/models/unload")):
            continue  # asks for a model of that name
        status, headers, said = answer(tiny_server, wrong, there)
        assert status == 405
        anthropic = "/messages" in path
        validator("MessagesErrorEnvelope" if anthropic else "ErrorEnvelope").validate(said)
        assert wrong in said["error"]["message"]
        code = said["error"]["details"]["error_code"] if anthropic else said["error"]["code"]
        assert code == "method_not_allowed"
        assert right in headers["Allow"]
        assert all(right in suggestion for suggestion in said["error"]["suggestions"])
        assert said["error"]["suggestions"]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_an_unknown_model_is_told_in_the_envelope(tiny_server: Server, path: str) -> None:
    for name in ("gpt-99", "somebody/gpt-99", "somebody%2Fgpt-99"):
        status, _, said = answer(tiny_server, "GET", f"{path}/{name}")
        assert status == 404
        validator("ErrorEnvelope").validate(said)
        assert name.replace("%2F", "/") in said["error"]["message"]
        assert said["error"]["code"] == "model_not_found"
        assert any(tiny_server.model in suggestion for suggestion in said["error"]["suggestions"])
