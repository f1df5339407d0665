"""Megabytes of text: most is not read to its end, and while some is, others are answered."""

import json
import threading

import pytest
from caller import BOUND, chat, is_well, messages, post, refusal, tokens_found

from serving import Server

LONG = 10_000_000


@pytest.mark.parametrize("path", BOUND)
@pytest.mark.parametrize(
    "text", ["a" * LONG, " " * LONG, "\N{GRINNING FACE}" * (LONG // 4)], ids=["a", "blank", "emoji"]
)
def test_any_ten_megabytes_are_refused(tiny_server: Server, path: str, text: str) -> None:
    assert 2 * 4096 < tokens_found(tiny_server, path, text) < 400_000
    is_well(tiny_server)


def test_others_are_answered_while_a_long_text_is_read(tiny_server: Server) -> None:
    done = threading.Event()
    answers = []

    def count() -> None:
        answers.append(post(tiny_server, "/v1/messages/count_tokens", messages("word " * (LONG // 5))))
        done.set()

    counting = threading.Thread(target=count)
    counting.start()
    meanwhile = 0
    while not done.is_set():
        is_well(tiny_server)
        meanwhile += not done.is_set()
    counting.join()
    ((status, answer),) = answers
    assert status == 200
    assert json.loads(answer)["input_tokens"] > LONG // 5
    # It takes seconds. If they were the event loop's, only the first would have been answered before.
    assert meanwhile > 3


def test_what_the_tokenizer_gives_up_on_is_refused(tiny_server: Server) -> None:
    """Its regular expression may take ten million steps, and no more."""
    error = refusal(tiny_server, "/v1/messages/count_tokens", messages(" " * 11_000_000 + "x"))
    assert "gives up" in error["message"]
    is_well(tiny_server)


def test_more_tools_than_a_grammar_can_have(tiny_server: Server) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": parameters}} for n in range(5000)]
    error = refusal(tiny_server, "/v1/chat/completions", {**chat("hi"), "tools": tools})
    assert "It may be too large" in error["message"]
    assert "backtrace" not in error["message"]
    is_well(tiny_server)
