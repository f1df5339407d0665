"""The plugin in a real server with a real model: every line of a request carries the id of its answer."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from logged import lines
from serving import serve

CONFIG = """
[plugins.logging]
file = "{file}"
level = "debug"
log_prompts = true
"""
HELLO = {
    "model": "starter",
    "messages": [{"role": "user", "content": "Say hello to ada@example.com."}],
    "max_tokens": 8,
}
ENDLESS = {**HELLO, "stream": True, "max_tokens": 1900, "logit_bias": {"2": -100}}
"""Without the token that ends the starter's answers."""
PATIENCE = 2400
"""Looks for a line, each after a twentieth of a second."""


@dataclass
class Log:
    """What the server wrote."""

    file: Path
    ids: dict[str, str]
    """Of the answers' ``X-Request-ID``, by request."""

    def of(self, name: str) -> list[dict[str, Any]]:
        """The lines of a request."""
        return [line for line in lines(self.file) if line.get("request_id") == self.ids[name]]

    def events(self, name: str) -> list[str]:
        """What they tell."""
        return [line["event"] for line in self.of(name)]

    def find(self, name: str, event: str) -> dict[str, Any]:
        """The one of them that tells this."""
        return next(line for line in self.of(name) if line["event"] == event)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    folder = tmp_path_factory.mktemp("logging")
    log = Log(folder / "jackfield.log", {})
    config = folder / "jackfield.toml"
    config.write_text(CONFIG.format(file=log.file))
    with (
        serve("starter", "--config", str(config), JACKFIELD_PLUGINS="logging") as server,
        httpx2.Client(base_url=server.api, timeout=120) as client,
    ):
        answered(client, log)
        with client.stream("POST", "/chat/completions", json={**HELLO, "stream": True}) as stream:
            assert stream.read().endswith(b"data: [DONE]\n\n")
        log.ids["stream"] = stream.headers["X-Request-ID"]
        with client.stream("POST", "/chat/completions", json=ENDLESS) as gone:
            log.ids["gone"] = gone.headers["X-Request-ID"]
            next(line for line in gone.iter_lines() if '"content":"' in line and '"content":""' not in line)
        wait_for(log, "gone", "request_cancelled")
    yield log


def answered(client: httpx2.Client, log: Log) -> None:
    """Requests that are answered whole."""
    plain = client.post("/chat/completions", json=HELLO)
    own = client.post("/chat/completions", json=HELLO, headers={"X-Request-ID": "my-own-id"})
    text = client.post("/completions", json={"model": "starter", "prompt": "x = 1;\ny = 2;", "max_tokens": 2})
    wrong = client.post("/chat/completions", json={**HELLO, "max_tokens": "many"})
    assert [answer.status_code for answer in (plain, own, text, wrong)] == [200, 200, 200, 400]
    answers = {"plain": plain, "own": own, "text": text, "wrong": wrong}
    log.ids |= {name: answer.headers["X-Request-ID"] for name, answer in answers.items()}


def wait_for(log: Log, name: str, event: str) -> None:
    """Until the server has noticed."""
    for _ in range(PATIENCE):
        if event in log.events(name):
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"no {event} in {log.file.read_text()}")


@pytest.mark.parametrize("name", ["plain", "stream", "own", "text"])
def test_an_answered_request_has_all_its_stations(log: Log, name: str) -> None:
    # What the server itself says of the request has its id, too, and comes when it comes.
    stations = [event for event in log.events(name) if event != "server_log"]
    assert stations == ["request_received", "prompt", "backend_chosen", "first_token", "request_completed"]
    assert "prompt tokens cached" in log.find(name, "server_log")["message"]


def test_a_refused_request_is_told_with_its_category_and_what_to_do(log: Log) -> None:
    assert log.events("wrong") == ["request_failed"]
    failed = log.find("wrong", "request_failed")
    assert (failed["level"], failed["status"], failed["category"]) == ("warning", 400, "request")
    assert "max_tokens" in failed["message"] and isinstance(failed["suggestions"], list)


def test_a_client_that_hangs_up_is_told(log: Log) -> None:
    assert log.events("gone")[-1] == "request_cancelled"
    assert log.find("gone", "request_cancelled")["completion_tokens"] > 0


def test_ids_are_the_clients_own_or_made_here(log: Log) -> None:
    assert log.ids["own"] == "my-own-id"
    for name in ("plain", "stream", "text", "wrong", "gone"):
        kind, seconds, digits = log.ids[name].split("_")
        assert (kind, seconds.isdecimal(), len(digits)) == ("req", True, 8)


def test_a_received_request_is_analysed(log: Log) -> None:
    received = log.find("text", "request_received")
    assert (received["endpoint"], received["characters"], received["code_share"]) == ("/completions", 13, 1.0)
    received = log.find("stream", "request_received")
    assert (received["messages"], received["roles"], received["stream"]) == (1, {"user": 1}, True)
    assert received["prompt_tokens"] > 0 and received["code_share"] == 0 and 0 < received["complexity"] < 1


@pytest.mark.parametrize("name", ["plain", "stream"])
def test_a_completion_is_told_in_numbers(log: Log, name: str) -> None:
    completed = log.find(name, "request_completed")
    assert 0 < completed["completion_tokens"] <= 8 and completed["finish_reasons"][0] in ("stop", "length")
    assert completed["tokens_per_second"] > 0 and completed["seconds"] >= completed["first_token_seconds"] > 0
    assert completed["memory_before"] > 0 and completed["memory_after"] > 0


def test_prompts_are_redacted_on_the_way(log: Log) -> None:
    assert log.find("plain", "prompt")["passages"] == [{"role": "user", "text": "Say hello to [redacted:email]."}]
    assert "ada@example.com" not in log.file.read_text()


def test_the_servers_own_messages_and_events_are_there(log: Log) -> None:
    told = [line["event"] for line in lines(log.file)]
    assert "model_loaded" in told and "server_log" in told
