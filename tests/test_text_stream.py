"""Decoding token by token: nothing is lost, nothing doubled, each token goes out with its own text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jackfield.engine.request import TokenEvent
from jackfield.models.tokenizer import Tokenizer
from jackfield.text.stops import StopMatcher
from jackfield.text.stream import TextStream

TEXTS = [
    "Grüße aus 東京 🦊🦊",
    "def f(x):\n    return x  # ½\n",
    " leading and trailing ",
    "a\u0301\u0323 e\u0308",
    "👩‍👩‍👧‍👦",
]


@pytest.fixture(scope="module")
def tokenizer(starter) -> Tokenizer:
    return Tokenizer(starter)


def decoded(tokenizer: Tokenizer, tokens: list[int]) -> str:
    decoder = tokenizer.decoder()
    return "".join(decoder.push(token) for token in tokens) + decoder.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(tokenizer, text):
    assert decoded(tokenizer, tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=40))
def test_any_tokens_give_what_decoding_them_at_once_gives(tokenizer, tokens):
    assert decoded(tokenizer, tokens) == tokenizer.decode(tokens)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEXTS), st.text(alphabet="aer 東\n", min_size=1, max_size=2))
def test_tokens_go_out_in_order_each_with_its_own_text(tokenizer, text, stop):
    tokens = tokenizer.encode(text)
    stream = TextStream(tokenizer.decoder(), StopMatcher([stop]), frozenset())
    deltas = [stream.push(TokenEvent(token)) for token in tokens] + [stream.finish()]
    assert "".join(delta.text for delta in deltas) == text.split(stop)[0]
    given_out = [token.id for delta in deltas for token in delta.tokens]
    assert given_out == tokens[: len(given_out)]
    if stop not in text:
        assert given_out == tokens
    said = b"".join(tokenizer.token_bytes(token) for token in given_out).decode("utf-8", "replace")
    assert said.startswith(text.split(stop)[0])


def test_the_bytes_of_special_tokens_are_their_names(tokenizer):
    (token,) = tokenizer.end_tokens & {tokenizer.special_token("<|im_end|>")}
    assert tokenizer.token_bytes(token) == b"<|im_end|>"
    assert tokenizer.special_token("France") is None
