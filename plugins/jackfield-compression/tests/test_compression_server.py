"""The plugin in a server: with an engine that says what it is told to, and with the real starter."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from compression_conversations import assistant, chat, lines, step, user
from jackfield.errors import ConfigurationError
from jackfield.testing import StartServer
from jackfield_compression import Plugin
from serving import Server, serve

PLUGGED = ("compression", Plugin())
TOO_LONG = [{"role": "system", "content": "You are terse."}, *chat(60)]


def test_a_conversation_that_is_too_long_is_answered(jackfield_server: StartServer) -> None:
    server = jackfield_server(PLUGGED, context_length=2000)
    server.says("Good.")
    reply = server.chat(TOO_LONG, jackfield=True, max_tokens=100)
    assert reply.status == 200
    assert reply.content == "Good."
    told = reply.json["jackfield"]["compression"]
    assert told["plugin"] == "compression"
    assert told["tokens_after"] == len(server.requests[0].prompt) <= 1900
    assert told["tokens_before"] > 1900
    report = told["report"]
    assert report["tokens_after"] == told["tokens_after"]
    assert abs(report["tokens_before"] - told["tokens_before"]) < 0.05 * told["tokens_before"]
    assert report["messages_before"] == len(TOO_LONG)
    assert report["strategies"]["window"]["messages"] == report["dropped"] > 0
    recorded = server.record("completed").data["compression"]
    assert recorded["report"] == report
    assert "Turn" not in json.dumps(recorded)


def test_one_that_fits_is_left_alone(jackfield_server: StartServer) -> None:
    server = jackfield_server(PLUGGED)
    reply = server.chat("Hi", jackfield=True)
    assert reply.json["jackfield"].get("compression") is None


def test_what_cannot_be_made_shorter_is_refused_with_numbers_and_costs_the_plugin_nothing(
    jackfield_server: StartServer,
) -> None:
    server = jackfield_server(PLUGGED, context_length=1000)
    for _ in range(6):
        reply = server.chat([*chat(5), assistant("Yes."), user("word " * 1000)])
        assert reply.status == 400
        assert reply.json["error"]["code"] == "context_length_exceeded"
    # The fixture fails the test if a plugin has failed.
    server.says("Good.")
    assert server.chat(TOO_LONG).status == 200


def test_a_summary_is_asked_from_the_served_model(jackfield_server: StartServer) -> None:
    settings = {"compression": {"strategy": ["extractive", "summary"], "summary_tokens": 100}}
    server = jackfield_server(("compression", Plugin()), settings=settings, context_length=4000)
    server.says("They counted turns.")
    server.says("Good.")
    reply = server.chat(TOO_LONG * 2, jackfield=True)
    assert reply.content == "Good."
    asked, answered = (server.tokenizer.decode(request.prompt) for request in server.requests)
    assert "Summarise it" in asked
    assert "A summary of them:\nThey counted turns." in answered
    summary = reply.json["jackfield"]["compression"]["report"]["strategies"]["summary"]
    assert summary["tokens"] == len("They counted turns.")


def test_wrong_settings_stop_the_server_and_are_told(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError, match="there is no 'squash'"):
        jackfield_server(PLUGGED, settings={"compression": {"strategy": "squash"}})


# ---------------------------------------------------------------------------------------- the real model


def ask(server: Server, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": server.model, "messages": messages, "max_tokens": 8, "temperature": 0, "jackfield": True}
    response = httpx2.post(f"{server.api}/chat/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_real_model_finds_the_compressed_beginning_in_its_cache(tmp_path: Path) -> None:
    flags = ("--context-length", "1024")
    work = [message for number in range(4) for message in step(number, lines(120, f"n{number}"), n=number)]
    messages = [{"role": "system", "content": "You are terse."}, user("Run."), *work, assistant("Ran."), user("So?")]
    environment = {"JACKFIELD_PLUGINS": "compression", "JACKFIELD_DATA_DIR": str(tmp_path)}
    with serve("starter", *flags, **environment) as server:
        first = ask(server, messages)
        compression = first["jackfield"]["compression"]
        assert compression["tokens_before"] > 2 * 1024
        assert compression["tokens_after"] < 1024
        messages += [first["choices"][0]["message"], user("And now?")]
        second = ask(server, messages)
        assert second["jackfield"]["compression"]["report"]["fresh"] is False
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > compression["tokens_after"] - 64
    # And again after a restart, when nothing of it is in memory.
    with serve("starter", *flags, **environment) as server:
        third = ask(server, [*messages, second["choices"][0]["message"], user("Sure?")])
        report = third["jackfield"]["compression"]["report"]
        assert report["fresh"] is False
        assert report["dropped"] == second["jackfield"]["compression"]["report"]["dropped"]
