"""What other servers refuse, wherever and at whatever length they say it, and what they cannot even be asked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faulty_upstream import DONE, STREAM, USAGE, FaultyUpstream, chunk, refuses, says
from jackfield.testing import JackfieldServer, serving

QUESTION: Any = [{"role": "user", "content": "Hi"}]
KEY = "sk-0123456789"


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, faulty: FaultyUpstream) -> Iterator[JackfieldServer]:
    upstreams = {
        "patient": {"url": faulty.url, "max_failures": 1000},
        "weak": {"url": faulty.url, "api_key": KEY, "max_failures": 1, "rest_seconds": 600},
        "misspelt": {"url": "http://127.0.0.999:8000/v1", "max_failures": 1000},
    }
    models = {name: {"route": [name]} for name in upstreams} | {"scripted": {"route": ["weak", "mlx"]}}
    with serving(jackfield_tokenizer, models=models, upstreams=upstreams) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(faulty: FaultyUpstream) -> None:
    faulty.acts.clear()
    faulty.bodies.clear()


def still_answers(server: JackfieldServer) -> bool:
    """Whether one failure has not been counted, which would be one too many."""
    return server.chat("Hi", model="weak").content == "Hello"


# --- What goes along -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "asked", "header"),
    [
        ("/v1/messages/count_tokens", {"messages": QUESTION}, "anthropic-version"),
        ("/v1/messages/count_tokens", {"messages": QUESTION}, "anthropic-beta"),
        ("/v1/embeddings", {"input": "Hi"}, "Jackfield-Trail"),
        ("/v1/chat/completions", {"messages": QUESTION}, "Jackfield-Trail"),
    ],
)
def test_a_header_that_cannot_go_along_is_the_clients_mistake(
    server: JackfieldServer, faulty: FaultyUpstream, path: str, asked: Any, header: str
) -> None:
    reply = server.post(path, {"model": "weak", **asked}, headers={header: "2023-06-01é"})
    assert (reply.status, header in reply.text) == (400, True), reply.text
    assert not faulty.bodies
    assert 'jackfield_upstream_requests_waiting{upstream="weak"} 0.0' in server.get("/metrics").text
    assert still_answers(server)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tokenize"])
def test_a_url_that_is_none_is_said_to_lead_nowhere(server: JackfieldServer, path: str) -> None:
    reply = server.post(path, {"model": "misspelt", "messages": QUESTION})
    assert (reply.status, "upstreams.misspelt.url" in reply.text) == (502, True), reply.text


def test_numbers_beyond_all_numbers_are_nonsense(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(refuses(200, b'{"input_tokens": 1, "data": [{"index": 1e999, "embedding": []}]}'))
    reply = server.post("/v1/embeddings", {"model": "patient", "input": "Hi"})
    assert (reply.status, reply.json["error"]["code"]) == (502, "upstream_error")


# --- Long refusals ---------------------------------------------------------------------------------------------------

LONG = "x" * 200_000
TOO_HOT = {"message": "Too hot.", "param": "temperature", "code": "invalid_value"}
LONG_REFUSALS: dict[str, tuple[int, Any, str]] = {
    "what was asked at its end": (400, {"error": TOO_HOT | {"input": LONG}}, "Too hot."),
    "what was asked at its beginning": (400, {"input": LONG, "error": TOO_HOT}, "status 400"),
    "nothing else": (400, {"error": {"message": f"Too hot: {LONG}"}}, f"Too hot: {LONG}"[:2000]),
    "FastAPI's": (422, {"detail": [{"loc": ["body", "n"], "msg": "Too few.", "input": LONG}]}, "body.n: Too few."),
    "a text": (400, b"Too hot.\n" + LONG.encode(), "Too hot."),
    "a text with a number": (400, b"400 too hot", "400 too hot"),
    "a page": (400, b"<html>" + LONG.encode(), "status 400"),
}


@pytest.mark.parametrize("refusal", LONG_REFUSALS)
def test_a_refusal_of_any_length_is_one(server: JackfieldServer, faulty: FaultyUpstream, refusal: str) -> None:
    status, body, message = LONG_REFUSALS[refusal]
    faulty.acts.append(refuses(status, body))
    reply = server.chat("Hi", model="weak")
    assert (reply.status, reply.json["error"]["message"]) == (400, message)
    assert still_answers(server)


# --- Refusals in a stream --------------------------------------------------------------------------------------------

BEGUN = STREAM + b": heartbeat\n\n"


def event(error: Any) -> bytes:
    """An error in a stream."""
    return b"data: %b\n\n" % json.dumps({"error": error}).encode()


OURS = {
    "message": "This model's maximum context length is 8 tokens. However, your messages resulted in 9 tokens.",
    "type": "invalid_request_error",
    "param": "messages",
    "code": "context_length_exceeded",
    "category": "request",
    "suggestions": ["Shorten the messages by at least 2 tokens."],
}
VLLMS = {"message": OURS["message"], "type": "BadRequestError", "param": None, "code": 400}
OPENAIS = {"message": "Too hot.", "type": "invalid_request_error", "param": "temperature", "code": None}
MISTAKES: dict[str, tuple[Any, int, str | None]] = {
    "Jackfield's": (OURS, 400, "context_length_exceeded"),
    "vLLM's": (VLLMS, 400, "context_length_exceeded"),
    "OpenAI's": (OPENAIS, 400, None),
    "not supported": ({"message": "No suffix.", "code": 501}, 400, "unsupported_value"),
    "too often": ({"message": "Slowly.", "code": "429"}, 429, "upstream_rate_limit"),
    "too often for OpenAI": ({"message": "Slowly.", "code": "rate_limit_exceeded"}, 429, "upstream_rate_limit"),
    "a queue": ({"message": "Full.", "type": "rate_limit_error", "category": "busy"}, 429, "upstream_rate_limit"),
    "a circle": ({"message": "Round.", "code": "upstream_loop", "category": "upstream"}, 508, "upstream_loop"),
}
FAILURES: dict[str, tuple[Any, int, str]] = {
    "an engine": ({"message": "Broken.", "category": "engine"}, 503, "upstream_unavailable"),
    "too late": ({"message": "Late.", "type": "timeout_error", "category": "time"}, 504, "upstream_timeout"),
    "another one": ({"message": "Gone.", "type": "server_error", "code": "upstream_error"}, 502, "upstream_error"),
    "another number": ({"message": "Gone.", "code": "1301"}, 502, "upstream_error"),
    "odd": ({"message": "Gone.", "code": [400], "type": {}}, 502, "upstream_error"),
    "a text": ("Gone.", 502, "upstream_error"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_refused_in_a_stream_is_refused(
    server: JackfieldServer, faulty: FaultyUpstream, mistake: str, stream: bool
) -> None:
    error, status, code = MISTAKES[mistake]
    faulty.acts.append(says(BEGUN + event(error) + DONE))
    reply = server.chat("Hi", model="weak", stream=stream)
    told = reply.json["error"]
    assert (reply.status, told["code"]) == (status, code)
    if status == 400:
        assert told["param"] == error.get("param")
    if mistake == "Jackfield's":
        assert (told["message"], told["suggestions"]) == (OURS["message"], OURS["suggestions"])
    assert still_answers(server)


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_in_a_stream_has_failed(server: JackfieldServer, faulty: FaultyUpstream, failure: str) -> None:
    error, status, code = FAILURES[failure]
    faulty.acts.append(says(BEGUN + event(error)))
    reply = server.chat("Hi", model="patient")
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    assert "." in reply.json["error"]["message"]


def test_who_is_refused_in_a_stream_for_length_is_answered_elsewhere(
    server: JackfieldServer, faulty: FaultyUpstream
) -> None:
    faulty.acts.append(says(BEGUN + event(OURS)))
    server.says("Here.")
    reply = server.chat("Hi", jackfield=True, stream=True)
    assert reply.content == "Here."
    assert [(one["backend"], one.get("reason")) for one in reply.extension["attempts"]] == [
        ("weak", "context_length_exceeded"),
        ("mlx", None),
    ]


def test_whatever_is_refused_after_words_is_told(server: JackfieldServer, faulty: FaultyUpstream) -> None:
    faulty.acts.append(says(STREAM + chunk(content="Half an ans") + event(OURS)))
    reply = server.chat("Hi", model="patient", stream=True)
    [told] = [one["error"] for one in reply.chunks if "error" in one]
    assert (told["code"], OURS["message"] in told["message"]) == ("upstream_error", True)


# --- Keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_why_a_key_is_not_accepted_is_said_without_the_key(
    server: JackfieldServer, faulty: FaultyUpstream, status: int
) -> None:
    words = "Your account is not active, {} has to be paid for."
    faulty.acts.append(refuses(status, {"error": {"message": words.format(KEY)}}))
    error = server.chat("Hi", model="weak").json["error"]
    assert error["code"] == "upstream_unauthorized"
    assert words.format("[key]") in error["message"]
    assert KEY not in str(error)


# --- Ends of lines ---------------------------------------------------------------------------------------------------

TWO_WORDS = chunk(content="Hello ") + chunk(content="you") + chunk("stop") + USAGE + DONE
IN_PIECES = STREAM.replace(b"Connection: close", b"Transfer-Encoding: chunked")


@pytest.mark.parametrize("size", [1, 1000], ids=["bytes", "whole"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["unmarked", "marked"])
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_streams_begin_and_lines_end_as_the_standard_allows(
    server: JackfieldServer, faulty: FaultyUpstream, end: bytes, mark: bytes, size: int
) -> None:
    text = mark + TWO_WORDS.replace(b"\n", end)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    faulty.acts.append(says(IN_PIECES + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in [*pieces, b""])))
    reply = server.chat("Hi", model="patient")
    assert (reply.content, reply.json["usage"]["total_tokens"]) == ("Hello you", 9)
