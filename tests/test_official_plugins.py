"""The official plugins at once, in a real server: each does its part, and none is in another one's way."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from contract import validator
from serving import Server, serve

NAMES = ("compression", "confidence", "dashboard", "logging", "notify")
LONG = [{"role": "user", "content": "word " * 1500}, {"role": "assistant", "content": "Yes."}]
QUESTION = {"role": "user", "content": "What is the capital of France?"}


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("official")
    config = folder / "jackfield.toml"
    config.write_text(f'[plugins.logging]\nformat = "json"\nfile = "{folder / "requests.log"}"\n')
    environment = {"JACKFIELD_PLUGINS": ",".join(NAMES), "JACKFIELD_DATA_DIR": str(folder / "data")}
    with serve("starter", "--config", str(config), "--context-length", "1024", **environment) as server:
        yield server
    lines = [json.loads(line) for line in (folder / "requests.log").read_text().splitlines()]
    assert not [line for line in lines if line["level"] == "error"]
    assert "capital of France" not in (folder / "requests.log").read_text()


def ask(server: Server, messages: list[Any], **fields: Any) -> httpx2.Response:
    body = {"model": "starter", "messages": messages, "max_tokens": 8, "jackfield": True, **fields}
    return httpx2.post(f"{server.api}/chat/completions", json=body, timeout=240)


def plugins(server: Server) -> dict[str, dict[str, Any]]:
    listed = httpx2.get(f"{server.api}/plugins", timeout=60).json()
    validator("PluginList").validate(listed)
    return {plugin["name"]: plugin for plugin in listed["data"]}


def test_an_answer_has_what_all_of_them_say(server: Server) -> None:
    reply = ask(server, [*LONG, QUESTION], temperature=0, max_tokens=16)
    assert reply.status_code == 200
    said = reply.json()
    assert "Paris" in said["choices"][0]["message"]["content"]
    extension = said["jackfield"]
    validator("Extension").validate(extension)
    assert extension["request_id"] == reply.headers["x-request-id"]
    assert extension["compression"]["plugin"] == "compression"
    assert 0 <= extension["choices"][0]["confidence"]["confidence"]["score"] <= 1


def test_streams_have_it_too(server: Server) -> None:
    reply = ask(server, [QUESTION], stream=True)
    *_, last = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert "confidence" in last["jackfield"]["choices"][0]["confidence"]


def test_all_of_them_are_at_work(server: Server) -> None:
    ask(server, [QUESTION])
    found = plugins(server)
    assert tuple(sorted(found)) == NAMES
    for plugin in found.values():
        assert (plugin["state"], plugin["failures"], plugin["errors"]) == ("active", 0, [])
    metrics = httpx2.get(f"{server.url}/metrics", timeout=60).text
    assert 'jackfield_plugin_calls_total{hook="log_record",plugin="logging"}' in metrics
    assert "jackfield_confidence_score_bucket" in metrics


def test_the_dashboard_shows_what_the_others_say(server: Server) -> None:
    answered = ask(server, [QUESTION]).headers["x-request-id"]
    deadline = time.monotonic() + 60
    found: list[dict[str, Any]] = []
    while not found and time.monotonic() < deadline:
        state = httpx2.get(f"{server.url}/dashboard/state", timeout=60).json()
        found = [one for one in state["requests"] if (one["id"], one["state"]) == (answered, "completed")]
    assert 0 <= found[0]["confidence"]["confidence"]["score"] <= 1
    assert {plugin["name"] for plugin in state["plugins"]} == set(NAMES)
    assert state["history"][-1]["device_bytes"] > 0
