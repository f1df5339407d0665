"""The plugin in Jackfield itself: what happens to requests is told, live and to targets."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from starlette.responses import Response
from websockets.sync.client import connect

from jackfield.testing import StartServer
from jackfield_notify.webhook import verify
from notify_receivers import PATIENCE, Receiver
from serving import serve

SECRET = "whsec_" + "QUJD" * 10
EVERYTHING = {"rules": [{"deduplicate_seconds": 0}]}


def settings(receiver: Receiver) -> dict[str, Any]:
    target = {"type": "webhook", "url": f"{receiver.url}/hook", "secret": SECRET}
    return {"notify": {"targets": {"ops": target}, "preferences": EVERYTHING}}


def webhook(receiver: Receiver, kind: str) -> dict[str, Any]:
    """The next event of a kind that a receiver gets, once it has been verified."""
    while True:
        got = receiver.next()
        verify(got.body, got.headers, SECRET)
        found: dict[str, Any] = json.loads(got.body)
        if found["type"] == kind:
            return found


def test_a_completed_request_is_told_live_and_by_webhook(jackfield_server: StartServer) -> None:
    with Receiver().listening() as receiver:
        server = jackfield_server("notify", settings=settings(receiver))
        server.says("The answer is a secret.")
        with _sse(f"{server.url}/v1") as sse, _websocket(f"{server.url}/v1") as websocket:
            answer = server.chat("A secret question?", headers={"X-Request-ID": "my-request"})
            by_sse, by_websocket = next(sse), next(websocket)
        by_webhook = webhook(receiver, "completed")
        server.stop()
    assert answer.headers["x-request-id"] == "my-request"
    assert by_sse == by_websocket
    assert by_sse["request_id"] == by_webhook["data"]["request_id"] == "my-request"
    assert by_sse["model"] == by_webhook["data"]["model"] == "scripted"
    assert "secret" not in json.dumps([by_sse, by_webhook])


def test_a_failed_request_is_told_too(jackfield_server: StartServer) -> None:
    with Receiver().listening() as receiver:
        server = jackfield_server("notify", settings=settings(receiver))
        assert server.chat("Hi!", temperature=-1).status == 400
        told = webhook(receiver, "failed")
        server.stop()
    assert told["data"]["details"]["status"] == 400


def test_a_message_that_is_given_up_is_told_live(jackfield_server: StartServer) -> None:
    with Receiver([Response(status_code=410)]).listening() as receiver:
        only = {"preferences": {"rules": [{"kinds": ["completed"]}]}}
        server = jackfield_server("notify", settings={"notify": settings(receiver)["notify"] | only})
        with _sse(f"{server.url}/v1", "notification_dead") as sse:
            server.chat("Hi!", headers={"X-Request-ID": "my-request"})
            told = next(sse)
            dead = server.get("/v1/notifications/outbox?state=dead").json["data"]
        server.stop()
    assert told["title"] == "A notification for 'ops' could not be delivered: The receiver answered 410."
    assert [letter["id"] for letter in dead] == [told["data"]["message"]]


def test_refusals_have_the_servers_own_shape(jackfield_server: StartServer) -> None:
    server = jackfield_server("notify")
    answer = server.request("PUT", "/v1/notifications/settings", {"sounds": True})
    assert (answer.status, answer.json["error"]["suggestions"]) == (400, ["Did you mean 'sound'?"])
    refused = server.request("PATCH", "/v1/notifications/settings", {})
    assert refused.status == 405
    assert set(refused.headers["allow"].split(", ")) == {"DELETE", "GET", "HEAD", "PUT"}


def test_what_deliveries_do_is_among_the_metrics(jackfield_server: StartServer) -> None:
    with Receiver().listening() as receiver:
        server = jackfield_server("notify", settings=settings(receiver))
        server.chat("Hi!")
        webhook(receiver, "completed")
        line = 'jackfield_notify_attempts_total{result="delivered",target="ops"}'
        server.wait_until(lambda: line in server.get("/metrics").text)
        server.stop()


def test_secrets_are_masked_where_plugins_are_listed(jackfield_server: StartServer) -> None:
    with Receiver().listening() as receiver:
        server = jackfield_server("notify", settings=settings(receiver))
        shown = server.get("/v1/plugins").text
        server.stop()
    assert "'notify'" in shown.replace('"', "'")
    assert SECRET not in shown
    assert receiver.url not in shown


def test_in_a_real_server_a_request_is_told_and_the_streams_end_with_the_server(tmp_path: Path) -> None:
    config = tmp_path / "jackfield.toml"
    with Receiver().listening() as receiver:
        config.write_text(
            "[plugins.notify.targets.ops]\n"
            f'type = "webhook"\nurl = "{receiver.url}"\nsecret = "{SECRET}"\n'
            "[[plugins.notify.preferences.rules]]\n"
            'kinds = ["completed"]\n'
        )
        environment = {"JACKFIELD_PLUGINS": "notify", "JACKFIELD_DATA_DIR": str(tmp_path / "data")}
        with ExitStack() as clients, serve("starter", "--config", str(config), **environment) as server:
            sse, websocket = clients.enter_context(_sse(server.api)), clients.enter_context(_websocket(server.api))
            request_id = _ask(server.api)
            by_sse, by_websocket, by_webhook = next(sse), next(websocket), webhook(receiver, "completed")
        assert server.process.returncode == 0  # although both clients still read
    assert by_sse == by_websocket
    assert by_sse["request_id"] == by_webhook["data"]["request_id"] == request_id
    assert by_sse["data"]["completion_tokens"] == by_webhook["data"]["details"]["completion_tokens"] == 5


@contextmanager
def _sse(api: str, kind: str = "completed") -> Iterator[Iterator[dict[str, Any]]]:
    with httpx2.stream("GET", f"{api}/events?kind={kind}", timeout=PATIENCE) as response:
        lines = response.iter_lines()
        assert next(lines) == ": connected"
        yield (json.loads(line.removeprefix("data: ")) for line in _patiently(lines) if line.startswith("data: "))


@contextmanager
def _websocket(api: str) -> Iterator[Iterator[dict[str, Any]]]:
    with connect(f"ws{api.removeprefix('http')}/events?kind=completed") as connection:
        events = (json.loads(text) for text in _patiently(connection))
        yield (event for event in events if event["kind"] != "heartbeat")


def _patiently(stream: Iterable[Any]) -> Iterator[Any]:
    """A stream, as long as there is more to come than heartbeats: they are 15 seconds apart."""
    heartbeats = 0
    for part in stream:
        heartbeats += "heartbeat" in part
        assert heartbeats < 8, "nothing else comes"
        yield part


def _ask(api: str) -> str:
    body = {"model": "starter", "messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 5, "ignore_eos": True}
    answer = httpx2.post(f"{api}/chat/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])
