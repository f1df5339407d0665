"""``/dashboard/events``, who may read it, and for whom there is room."""

import http.client
import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from jackfield.hooks import Identity, hookimpl
from jackfield.testing import JackfieldServer, StartServer

Events = Iterator[tuple[str, dict[str, Any]]]


class Door:
    """Knows two keys."""

    @hookimpl
    async def authenticate(self, request: HTTPConnection) -> Identity | None:
        scope = {"Bearer boss": "admin", "Bearer user": "inference"}.get(request.headers.get("authorization", ""))
        return Identity("somebody", frozenset({scope})) if scope else None


@contextmanager
def watching(server: JackfieldServer) -> Iterator[Events]:
    """What a page hears."""
    address = server.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request("GET", "/dashboard/events")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        with response:
            yield _events(response)


def _events(response: http.client.HTTPResponse) -> Events:
    name = ""
    for line in (line.decode().rstrip() for line in response):
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_everything_comes_first_and_then_what_changes(jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard")
    before = server.chat("Hi").request_id
    server.record("completed", before)
    server.wait_until(lambda: server.get("/dashboard/state").json["requests"])
    with watching(server) as events:
        name, told = next(events)
        assert (name, [one["id"] for one in told["requests"]]) == ("whole", [before])
        assert told["history"]
        server.engine.statistics.generated_tokens += 500
        after = server.chat("Hi again").request_id
        heard = [next(events) for _ in range(3)]
    assert {name for name, _ in heard} == {"news"}
    assert [len(told["history"]) for _, told in heard] == [1, 1, 1]
    assert max(told["history"][0]["tokens_per_second"] for _, told in heard) > 0
    requests = [one for _, told in heard for one in told["requests"]]
    assert {one["id"] for one in requests} == {after}
    assert requests[-1]["state"] == "completed"


def test_there_is_room_for_some_pages(jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard", settings={"dashboard": {"most_watchers": 1}})
    with watching(server) as events:
        next(events)
        refused = server.get("/dashboard/events")
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "most_watchers" in refused.text
    server.wait_until(lambda: server.request("HEAD", "/dashboard/events").status == 200)
    with watching(server) as events:
        assert next(events)[0] == "whole"


@pytest.mark.parametrize("path", ["/dashboard/state", "/dashboard/events"])
def test_data_needs_a_key_where_keys_are_asked_for(jackfield_server: StartServer, path: str) -> None:
    server = jackfield_server("dashboard", ("door", Door()))
    assert server.get(path).status == 401
    assert server.get(f"{path}?key=boss").status == 401
    assert server.get(path, headers={"Authorization": "Bearer user"}).status == 403
    assert server.request("HEAD", path, headers={"Authorization": "Bearer boss"}).status == 200
    told = server.get("/dashboard/state", headers={"Authorization": "Bearer boss"})
    assert told.json["requests"] == []  # the failures above are the page's own
    server.chat("Hi", headers={"Authorization": "Bearer user"})
    server.record("completed")
    server.wait_until(
        lambda: (
            [
                one["sender"]
                for one in server.get("/dashboard/state", headers={"Authorization": "Bearer boss"}).json["requests"]
            ]
            == ["somebody"]
        )
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(jackfield_server: StartServer, method: str) -> None:
    server = jackfield_server("dashboard")
    for path in ("/dashboard/", "/dashboard/state", "/dashboard/events", "/dashboard/main.js"):
        assert server.request(method, path).status == 405


def test_the_server_says_where_it_is(jackfield_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        server = jackfield_server("dashboard")
    assert f"The dashboard is at {server.url}/dashboard/" in caplog.messages
