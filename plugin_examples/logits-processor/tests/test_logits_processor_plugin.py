"""The processor on its own, and in a server whose scripted engine asks it at every token."""

from typing import Any

import pytest

from jackfield.testing import StartServer
from jackfield_logits_processor import NoRepeat

VOCABULARY = 8


def forbidden(processor: NoRepeat, *tokens: int) -> set[int]:
    """The tokens that may not come next."""
    import mlx.core as mx

    logits = processor(tokens, mx.arange(VOCABULARY).astype(mx.float16))
    assert logits.dtype == mx.float16
    assert logits.shape == (VOCABULARY,)
    values = logits.tolist()
    assert isinstance(values, list)
    assert all(value in (token, -float("inf")) for token, value in enumerate(values))
    return {token for token, value in enumerate(values) if value == -float("inf")}


def test_what_would_come_twice_is_forbidden() -> None:
    processor = NoRepeat(3)
    prompt, answer = (1, 2, 3), (4, 5, 6, 4, 5, 7, 4, 5)
    seen = [forbidden(processor, *prompt, *answer[:length]) for length in range(len(answer) + 1)]
    assert seen == [set()] * 5 + [{6}, set(), set(), {6, 7}]


def test_the_prompt_does_not_count() -> None:
    processor = NoRepeat(2)
    assert forbidden(processor, 1, 2, 1) == set()
    assert forbidden(processor, 1, 2, 1, 2) == set()
    assert forbidden(processor, 1, 2, 1, 2, 3) == set()
    assert forbidden(processor, 1, 2, 1, 2, 3, 2) == {3}


def test_no_token_twice() -> None:
    processor = NoRepeat(1)
    assert forbidden(processor, 7) == set()
    assert forbidden(processor, 7, 3) == {3}
    assert forbidden(processor, 7, 3, 4) == {3, 4}


@pytest.mark.parametrize("asked", [{}, {"jackfield": True}, {"jackfield": {"logits-processor": {"no_repeat": 0}}}])
def test_requests_that_do_not_ask_are_left_alone(jackfield_server: StartServer, asked: dict[str, Any]) -> None:
    server = jackfield_server("logits-processor")
    server.says("so so so")
    assert server.chat("Hi", **asked).content == "so so so"


def test_a_request_asks_for_it(jackfield_server: StartServer) -> None:
    server = jackfield_server("logits-processor")
    server.says("so so so")
    reply = server.chat("Hi", jackfield={"logits-processor": {"no_repeat": 3}})
    # "so " would come again, and what comes instead is the most likely of tokens that are all alike.
    assert reply.content == "so so!so"


def test_a_wrong_option_is_the_clients_mistake_and_not_the_plugins(
    jackfield_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = jackfield_server("logits-processor")
    server.says("so so so")
    assert server.chat("Hi", jackfield={"logits-processor": {"no_repeat": -1}}).content == "so so so"
    assert "options of logits-processor are ignored" in caplog.text


def test_settings_ask_for_it_for_all(jackfield_server: StartServer) -> None:
    server = jackfield_server("logits-processor", settings={"logits-processor": {"no_repeat": 3}})
    server.says("so so so")
    assert server.chat("Hi").content != "so so so"
    server.says("so so so")
    assert server.chat("Hi", jackfield={"logits-processor": {}}).content == "so so so"
