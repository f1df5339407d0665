"""What a request needs is told in every dialect, so that ways which cannot give it are passed over."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faulty_upstream import FaultyUpstream
from jackfield.hooks import hookimpl
from jackfield.testing import JackfieldServer, serving

HI: Any = [{"role": "user", "content": "Hi"}]
PIXEL = "iVBORw0KGgo="
URL = f"data:image/png;base64,{PIXEL}"
SCHEMA: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
PICTURE: Any = {"type": "image_url", "image_url": {"url": URL}}
INPUT_PICTURE: Any = {"type": "input_image", "image_url": URL}
SEEN: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
CALL: Any = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
TOOL: Any = {"name": "look", "input_schema": {"type": "object"}}
FUNCTION: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHAT: Any = {"messages": HI}
MESSAGES: Any = {"messages": HI, "max_tokens": 5}
LOGPROBS = "message.output_text.logprobs"
MORE_THAN_TEXT: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", CHAT | {"tools": [FUNCTION]}),
    ("chat/completions", CHAT | {"response_format": {"type": "json_object"}}),
    ("chat/completions", CHAT | {"regex": "a+"}),
    ("chat/completions", CHAT | {"grammar": 'start: "a"'}),
    ("chat/completions", CHAT | {"logprobs": True}),
    ("completions", {"prompt": "Hi", "regex": "a+"}),
    ("completions", {"prompt": "Hi", "logprobs": 0}),
    ("fim/completions", {"prompt": "Hi", "regex": "a+"}),
    ("infill", {"input_prefix": "a", "input_suffix": "b", "regex": "a+"}),
    ("messages", MESSAGES | {"tools": [TOOL]}),
    ("messages", MESSAGES | {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    ("responses", {"input": "Hi", "tools": [{"type": "function", "name": "look", "parameters": None}]}),
    ("responses", {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}}),
    ("responses", {"input": "Hi", "text": {"format": {"type": "json_object"}}}),
    ("responses", {"input": "Hi", "include": [LOGPROBS]}),
    ("responses", {"input": "Hi", "top_logprobs": 2}),
    ("responses", {"input": "Hi", "grammar": 'start: "a"'}),
]
PICTURES: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": [{"role": "user", "content": [PICTURE]}]}),
    ("messages", MESSAGES | {"messages": [{"role": "user", "content": [SEEN]}]}),
    (
        "messages",
        MESSAGES
        | {
            "messages": [
                *HI,
                {"role": "assistant", "content": [CALL]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [SEEN]}]},
            ]
        },
    ),
    ("responses", {"input": [{"role": "user", "content": [INPUT_PICTURE]}]}),
]
TEXT: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", CHAT | {"tools": [], "logprobs": False, "response_format": {"type": "text"}, "regex": None}),
    ("completions", {"prompt": "Hi", "logprobs": None}),
    ("messages", MESSAGES | {"tools": [], "output_config": {"effort": "low"}}),
    ("responses", {"input": "Hi", "text": {"format": {"type": "text"}}, "include": [], "tools": []}),
]


class Clerk:
    """A backend that gives text, and nothing else."""

    def __init__(self, server: object) -> None: ...

    def serves(self, request: object) -> bool:
        return True

    async def answer(self, request: object, body: object) -> AsyncIterator[str]:
        yield "Quite so."


class Brings:
    @hookimpl
    def register_backends(self, register: Callable[..., None]) -> None:
        register("clerk", Clerk)


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, faulty: FaultyUpstream) -> Iterator[JackfieldServer]:
    models = {
        "plain": {"route": [{"backend": "office", "capabilities": []}]},
        "clerk": {"route": ["clerk"]},
        "able": {"route": ["office"]},
        "short": {"route": [{"backend": "office", "context_length": 1000}]},
    }
    upstreams = {"office": {"url": faulty.url, "max_failures": 1000}}
    with serving(jackfield_tokenizer, ("b", Brings()), models=models, upstreams=upstreams) as started:
        yield started


WORDS = "word " * 20_000
BYTES = "iVBORw0KGgo/+" * 8000


@pytest.fixture(autouse=True)
def fresh(faulty: FaultyUpstream) -> None:
    faulty.bodies.clear()


@pytest.mark.parametrize(("path", "fields"), [*MORE_THAN_TEXT, *PICTURES], ids=str)
def test_who_gives_text_alone_is_not_asked_for_more(
    server: JackfieldServer, faulty: FaultyUpstream, path: str, fields: dict[str, Any]
) -> None:
    reply = server.post(f"/v1/{path}", {"model": "plain", **fields})
    assert (reply.status, "office: capability" in reply.text) == (503, True), reply.text
    assert not faulty.bodies


@pytest.mark.parametrize(("path", "fields"), MORE_THAN_TEXT, ids=str)
def test_a_plugins_backend_is_not_asked_for_more_than_text(
    server: JackfieldServer, path: str, fields: dict[str, Any]
) -> None:
    reply = server.post(f"/v1/{path}", {"model": "clerk", **fields})
    assert (reply.status, "clerk: capability" in reply.text) == (503, True), reply.text


@pytest.mark.parametrize("model", ["plain", "clerk"])
@pytest.mark.parametrize(("path", "fields"), TEXT, ids=str)
def test_text_is_not_more_than_text(server: JackfieldServer, model: str, path: str, fields: dict[str, Any]) -> None:
    reply = server.post(f"/v1/{path}", {"model": model, **fields})
    assert reply.status == 200, reply.text


def test_an_image_earlier_in_a_conversation_is_needed_too(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    asked = {"model": "able", "input": [{"role": "user", "content": [INPUT_PICTURE]}], "store": True}
    first = server.post("/v1/responses", asked).json["id"]
    reply = server.post("/v1/responses", {"model": "plain", "input": "And now?", "previous_response_id": first})
    assert (reply.status, "office: capability" in reply.text) == (503, True), reply.text
    assert len(faulty.bodies) == 1


def said(content: Any) -> Any:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"messages": said("With metadata: " + WORDS)}),
        ("chat/completions", {"messages": said("data:image/png;base64," + WORDS)}),
        ("completions", {"prompt": "data:" + WORDS}),
        ("messages", MESSAGES | {"messages": said(json.dumps({"data": BYTES}))}),
        (
            "messages",
            MESSAGES
            | {
                "messages": said(
                    [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": WORDS}}]
                )
            },
        ),
    ],
    ids=range(5),
)
def test_a_long_text_is_long_whatever_it_says(
    server: JackfieldServer, faulty: FaultyUpstream, path: str, fields: dict[str, Any]
) -> None:
    reply = server.post(f"/v1/{path}", {"model": "short", **fields})
    assert (reply.status, "office: context" in reply.text) == (503, True), reply.text[:300]
    assert not faulty.bodies


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"messages": said([PICTURE | {"image_url": {"url": f"data:image/png;base64,{BYTES}"}}])}),
        ("messages", MESSAGES | {"messages": said([SEEN | {"source": SEEN["source"] | {"data": BYTES}}])}),
        ("responses", {"input": said([INPUT_PICTURE | {"image_url": f"data:image/jpeg;base64,{BYTES}"}])}),
    ],
    ids=["chat", "messages", "responses"],
)
def test_images_are_not_counted_as_text(server: JackfieldServer, path: str, fields: dict[str, Any]) -> None:
    assert server.post(f"/v1/{path}", {"model": "short", **fields}).status == 200
