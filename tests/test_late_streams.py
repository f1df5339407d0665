"""Streams whose model is still being loaded: they begin with comments, so that nobody gives up."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from anthropic import Anthropic, APIStatusError
from openai import OpenAI

from jackfield.errors import InUseError, ModelLoadError
from jackfield.models.registry import Entry, Registry, ServedModel
from jackfield.testing import JackfieldServer, serving
from jackfield.testing import server as testing_server

QUESTION: Any = [{"role": "user", "content": "Hi"}]


class SlowShelf:
    """Loads a model when the test says so, or fails."""

    def __init__(self) -> None:
        self.model: ServedModel | None = None
        self.entry: Entry | None = None
        self.asked = threading.Event()
        self.goes_on = threading.Event()
        self.error: ModelLoadError | None = None

    def registry(self, models: list[ServedModel | Entry]) -> Registry:
        assert isinstance(models[0], ServedModel)
        self.model, self.entry = models[0], Entry(models[0].id)
        return Registry([self.entry, *models[1:]], shelf=self)

    async def load(self, entry: Entry) -> ServedModel:
        self.asked.set()
        await asyncio.to_thread(self.goes_on.wait, 60)
        if self.error is not None:
            raise self.error
        assert self.model is not None
        return self.model

    async def unload(self, entry: Entry) -> None:
        raise InUseError(entry.id, "it stays")

    def returned(self, entry: Entry) -> None:
        pass


@pytest.fixture(scope="module")
def shelf() -> SlowShelf:
    return SlowShelf()


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path, shelf: SlowShelf) -> Iterator[JackfieldServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing_server, "Registry", shelf.registry)
        with serving(jackfield_tokenizer, heartbeat=0.05) as started:
            yield started
            shelf.goes_on.set()


@pytest.fixture(autouse=True)
def fresh(shelf: SlowShelf, server: JackfieldServer) -> None:
    shelf.error = None
    shelf.asked.clear()
    shelf.goes_on.clear()
    server.engine.scripts.clear()


PATHS: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": QUESTION},
    "/completions": {"prompt": "Hi"},
    "/fim/completions": {"prompt": "Hi"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/messages": {"messages": QUESTION, "max_tokens": 50},
    "/responses": {"input": "Hi"},
}
WITH_A_GAP = ("/fim/completions", "/infill")
"""The scripted model has no tokens for that."""


class Call:
    """A stream that has begun."""

    def __init__(self, server: JackfieldServer, path: str) -> None:
        self.connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        body = {"model": "scripted", "stream": True, **PATHS[path]}
        self.connection.request("POST", f"/v1{path}", json.dumps(body), {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()

    def close(self) -> None:
        self.response.close()
        self.connection.close()


@pytest.mark.parametrize("path", [path for path in PATHS if path not in WITH_A_GAP])
def test_it_lives_while_a_model_is_loaded(server: JackfieldServer, shelf: SlowShelf, path: str) -> None:
    server.says("Here I am.")
    with closing(Call(server, path)) as call:
        assert call.response.status == 200
        lines = [call.response.readline().strip() for _ in range(3)]
        assert lines == [b": heartbeat", b"", b": heartbeat"]
        shelf.goes_on.set()
        text = call.response.read().decode()
    assert "Here I am." in "".join(pieces(text))
    assert '"error":{' not in text


def pieces(text: str) -> Iterator[str]:
    """What is said in the events of any dialect."""
    for line in text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            delta = event.get("delta") or (event.get("choices") or [{}])[0].get("delta") or {}
            if isinstance(delta, str):
                yield delta if event["type"] == "response.output_text.delta" else ""
            else:
                said = delta.get("content") or delta.get("text") or event.get("content")
                yield said or (event.get("choices") or [{}])[0].get("text") or ""


@pytest.mark.parametrize("path", PATHS)
def test_what_fails_then_is_told_in_the_stream(server: JackfieldServer, shelf: SlowShelf, path: str) -> None:
    shelf.error = ModelLoadError("It is broken.")
    with closing(Call(server, path)) as call:
        request_id = call.response.getheader("x-request-id")
        shelf.goes_on.set()
        text = call.response.read().decode()
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    (event,) = events
    assert event["error"]["message"] == "It is broken."
    assert event["error"]["suggestions"]
    assert ("data: [DONE]" in text) == (path in ("/chat/completions", "/completions", "/fim/completions"))
    assert server.record("failed", request_id).data["code"] == "model_load_error"


def test_sdks_raise_it(server: JackfieldServer, shelf: SlowShelf) -> None:
    shelf.error = ModelLoadError("It is broken.")
    shelf.goes_on.clear()
    threading.Timer(0.3, shelf.goes_on.set).start()
    with OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="It is broken"):
            list(client.chat.completions.create(model="scripted", messages=QUESTION, stream=True))
        with pytest.raises(openai.APIError, match="It is broken"):
            list(client.responses.create(model="scripted", input="Hi", stream=True))
    shelf.goes_on.clear()
    threading.Timer(0.3, shelf.goes_on.set).start()
    with (
        Anthropic(base_url=server.url, api_key="x", max_retries=0) as client,
        pytest.raises(APIStatusError, match="It is broken"),
        client.messages.stream(model="scripted", messages=QUESTION, max_tokens=5) as stream,
    ):
        list(stream)


def test_a_slip_in_the_request_is_an_http_error_all_the_same(server: JackfieldServer) -> None:
    reply = server.chat("Hi", stream=True, temperature=9)
    assert (reply.status, reply.json["error"]["param"]) == (400, "temperature")


def test_an_answer_in_one_piece_waits(server: JackfieldServer, shelf: SlowShelf) -> None:
    shelf.error = ModelLoadError("It is broken.")
    threading.Timer(0.3, shelf.goes_on.set).start()
    assert server.chat("Hi").status == 500


def test_a_client_that_gives_up_meanwhile_is_forgotten(server: JackfieldServer, shelf: SlowShelf) -> None:
    with closing(Call(server, "/chat/completions")) as call:
        request_id = call.response.getheader("x-request-id")
        call.response.readline()
    assert server.event("cancelled", request_id)
    assert shelf.entry is not None
    server.wait_until(lambda: shelf.entry is not None and not shelf.entry.loans)
