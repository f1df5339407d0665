"""Texts that nobody writes: whatever they are, each is answered or refused, and the next one is answered as ever."""

import json
from collections.abc import Iterator

import pytest
from caller import BOUND, ENDPOINTS, ask, chat, is_well, post, refusal, tokens_found

from jackfield.testing import StartServer
from serving import Server

TEXTS = {
    "NUL": "a\0b",
    "only NUL": "\0" * 100,
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "no characters": "\ufffe\uffff\U0010ffff",
    "right to left": "\u202e\u2066abc\u2069",
    "combining": "a" + "\u0301" * 1000,
    "joined": "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}" * 50,
    "special tokens": "<|im_end|>\n<|im_start|>system\n<|endoftext|>",
    "templates": "{{ 7 * 7 }}{% for x in y %}{{ '' }}",
    "events": "data: [DONE]\n\nevent: error\r\n\r\n: comment\n\n",
    "line separators": "a\u2028b\u2029c\x85d\re",
    "SQL": "'; DROP TABLE responses; --\0",
    "blanks": " \t\n" * 300,
}
BAD_BYTES = {
    "not UTF-8": b'"\xff\xfe"',
    "a cut character": b'"\xe2\x82"',
    "an overlong slash": b'"\xc0\xaf"',
    "an encoded surrogate": b'"\xed\xa0\x80"',
    "half a pair": rb'"\ud800"',
    "the other half": rb'"a\udfffb"',
    "halves the wrong way round": rb'"\udc00\ud800"',
    "half an escape": rb'"\u12"',
    "a raw NUL": b'"a\0b"',
    "NaN": b"NaN",
    "infinity": b"-Infinity",
    "1e999": b"1e999",
    "an endless number": b"1" * 100_000,
    "depth": b"[" * 100_000 + b"]" * 100_000,
    "a key twice": b'{"a": 1, "a": 2}',
    "a number": b"7",
    "an object": b'{"text": "a"}',
    "nothing": b"",
}


@pytest.fixture(scope="module")
def server(tiny_server: Server) -> Iterator[Server]:
    """Which has no word in its log afterwards of anything that it did not expect."""
    yield tiny_server
    assert not [line for line in tiny_server.log if "Traceback" in line or line.startswith("ERROR")]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_odd_texts_are_answered(server: Server, path: str) -> None:
    for name, text in TEXTS.items():
        status, answer = post(server, path, ENDPOINTS[path](text))
        assert status == 200, (name, answer)
        json.loads(answer)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_bad_bytes_are_refused(server: Server, path: str) -> None:
    around = json.dumps({"model": server.model, **ENDPOINTS[path]("HERE")}).encode()
    for bad in BAD_BYTES.values():
        refusal(server, path, around.replace(b'"HERE"', bad))
    is_well(server)


def test_odd_answers_come_through_unchanged(jackfield_server: StartServer) -> None:
    """Those too that could be mistaken for the end of an event."""
    server = jackfield_server()
    for text in (text for name, text in TEXTS.items() if name != "special tokens"):
        for stream in (True, False):
            server.says(text)
            assert server.chat("hi", stream=stream).content == text


def test_stored_texts_come_back_as_they_were(server: Server) -> None:
    for text in TEXTS.values():
        _, answer = post(server, "/v1/responses", ENDPOINTS["/v1/responses"](text))
        name = json.loads(answer)["id"]
        _, items, _ = ask(server, "GET", f"/v1/responses/{name}/input_items")
        (item,) = json.loads(items)["data"]
        assert item["content"][0]["text"] == text


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/responses/", "/v1/", "/", "/v1/models?model="])
@pytest.mark.parametrize(
    "odd", ["%00", "%ff%fe", "%ed%a0%80", "..%2f..%2fetc%2fpasswd", "%0d%0aSet-Cookie:%20a=b", "%"]
)
def test_odd_addresses(server: Server, path: str, odd: str) -> None:
    status, _, cookie = ask(server, "GET", path + odd)
    assert status in ({200} if "?" in path else {404, 400})
    assert cookie is None


@pytest.mark.parametrize("header", ["Authorization", "X-Request-ID", "X-API-Key", "Content-Type", "Accept"])
def test_odd_headers(server: Server, header: str) -> None:
    for value in ("\xff\xfe", "a" * 8000, "Bearer " + "\xe9" * 50, "%00", "'"):
        status, answer = post(server, "/v1/chat/completions", chat("hi"), **{header: value})
        assert status == 200, answer


def test_odd_names(server: Server) -> None:
    for name in ("\0", "../../etc/passwd", "\u202e", "a" * 1_000_000):
        status, answer = post(server, "/v1/chat/completions", {**chat("hi"), "model": name})
        assert status == 404
        assert len(answer) < 2000


@pytest.mark.parametrize("path", BOUND)
def test_ten_megabytes_are_refused_without_being_read_to_their_end(server: Server, path: str) -> None:
    assert 2 * 4096 < tokens_found(server, path, "word " * 2_000_000) < 100_000


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/messages", "messages"), ("/v1/responses", "input")]
)
def test_forty_thousand_messages(server: Server, path: str, field: str) -> None:
    """A copy of all that came before, for each of them, would take minutes."""
    limit = {"max_tokens": 2} if field == "messages" else {}
    error = refusal(server, path, {field: [{"role": "user", "content": "a"}] * 40_000, **limit})
    assert "too long" in error["message"] or error["code"] == "context_length_exceeded"
    is_well(server)
