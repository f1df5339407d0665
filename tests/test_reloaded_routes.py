"""Upstreams and routes that change while the server runs."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

from faulty_upstream import DONE, STREAM, USAGE, Act, FaultyUpstream, chunk, faulty_upstream
from jackfield import settings as configuration
from jackfield.cli.reloading import Reloader
from jackfield.settings import Configuration
from jackfield.testing import JackfieldServer, StartServer


@pytest.fixture(scope="module")
def old() -> Iterator[FaultyUpstream]:
    with faulty_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def new() -> Iterator[FaultyUpstream]:
    with faulty_upstream() as upstream:
        yield upstream


def told(upstreams: Mapping[str, str], **models: Any) -> Configuration:
    flags = {"upstreams": {name: {"url": url} for name, url in upstreams.items()}, "models": models}
    return configuration.read(flags, environment={"JACKFIELD_CONFIG": "/dev/null"})


class Reloading:
    """A server whose settings are read again."""

    def __init__(self, start: StartServer, before: Configuration) -> None:
        settings = before.settings.model_dump(include={"upstreams", "models"}, exclude_unset=True)
        self.server: JackfieldServer = start(**settings)
        self.found = before
        self._reloader = Reloader(before, lambda: self.found)
        self._reloader.reroute = self.server._running._app.state.host.reroute

    def reload(self, found: Configuration) -> None:
        self.found = found
        done: Future[None] = Future()
        self.server._running.do(lambda: done.set_result(self._reloader.reload()))
        done.result(60)


def waits_for(event: threading.Event) -> Act:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(content="Old"))
        await writer.drain()
        while not event.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.01)
        writer.write(chunk(content=" answer", finish="stop") + USAGE + DONE)

    return act


def test_routes_lead_elsewhere_from_then_on(
    jackfield_server: StartServer, old: FaultyUpstream, new: FaultyUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    running = Reloading(jackfield_server, told({"office": old.url}, far={"route": ["office"]}))
    server, goes_on = running.server, threading.Event()
    old.acts.append(waits_for(goes_on))
    with server.streaming("Hi", model="far") as chunks:
        next(chunks)
        running.reload(told({"office": new.url, "spare": old.url}, far={"route": ["office", "spare"]}))
        assert server.chat("Hi", model="far").content == "Hello"
        assert (len(old.bodies), len(new.bodies)) == (1, 1)
        goes_on.set()
        said = [one["choices"][0]["delta"].get("content") for one in chunks if one.get("choices")]
    assert "".join(filter(None, said)).endswith("answer")
    assert "upstreams and routes are in force" in caplog.text
    assert old.url not in "".join(one.getMessage() for one in caplog.records if one.name.startswith("jackfield"))
    assert "These take a restart" not in caplog.text
    assert 'jackfield_upstream_state{state="closed",upstream="spare"} 1.0' in server.get("/metrics").text


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"far": {"route": ["offcie"]}}, "Something stays as it was. The route of model 'far' leads to 'offcie'"),
        ({"far": {"route": ["office", "mlx"]}}, "These take a restart: models."),
        ({"far": {"route": ["office"]}, "more": {"route": ["office"]}}, "These take a restart: models."),
    ],
    ids=["nobody", "comes here", "one more"],
)
def test_what_cannot_be_is_told_and_changes_nothing(
    jackfield_server: StartServer,
    old: FaultyUpstream,
    caplog: pytest.LogCaptureFixture,
    models: dict[str, Any],
    message: str,
) -> None:
    running = Reloading(jackfield_server, told({"office": old.url}, far={"route": ["office"]}))
    running.reload(told({"office": old.url}, **models))
    assert message in caplog.text
    # One or the other: what a restart would refuse, too, does not take one.
    assert ("Something stays as it was" in caplog.text) != ("These take a restart" in caplog.text)
    assert running.server.chat("Hi", model="far").content == "Hello"
