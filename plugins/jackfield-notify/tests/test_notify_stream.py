"""The live stream, end to end: server-sent events and WebSockets, going on where one was, filters, slow clients."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from jackfield.hooks import Event
from jackfield_notify.feed import Feed, Filter, TooSlowError
from notify_plugin import Plugged, plugged
from notify_receivers import PATIENCE


@dataclass
class Lines:
    """A stream of server-sent events, as it is read."""

    lines: Iterator[str]

    def event(self) -> tuple[str, dict[str, Any]]:
        """The next event's id and data."""
        for _ in range(8):  # heartbeats are 15 seconds apart
            block = self.block()
            if "data" in block:
                return block["id"], json.loads(block["data"])
        raise AssertionError("nothing but heartbeats comes")

    def block(self) -> dict[str, str]:
        """What comes up to the next empty line; comments under the empty name."""
        found: dict[str, str] = {}
        for line in self.lines:
            if not line:
                return found
            name, _, value = line.partition(":")
            found[name] = value.removeprefix(" ")
        raise EOFError


@contextmanager
def sse(plugin: Plugged, query: str = "", last_id: str | None = None) -> Iterator[Lines]:
    """Read along, once the stream has begun."""
    headers = {"last-event-id": last_id} if last_id else {}
    with httpx2.stream("GET", f"{plugin.url}/v1/events{query}", headers=headers, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = Lines(response.iter_lines())
        assert lines.block() == {"": "connected", "retry": "2000"}
        yield lines


def websocket(plugin: Plugged, query: str = "") -> ClientConnection:
    return connect(f"ws{plugin.url.removeprefix('http')}/v1/events{query}")


def received(connection: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(connection.recv(PATIENCE))
    return found


def test_events_come_as_server_sent_events_with_ids_and_request_ids(tmp_path: Path) -> None:
    with plugged(tmp_path) as plugin, sse(plugin) as stream:
        plugin.tell(
            "completed", "info", "Answered.", model="starter", request_id="req_1", time=1_800_000_000.5, data={"n": 1}
        )
        event_id, event = stream.event()
    assert event == {
        "id": event_id,
        "kind": "completed",
        "level": "info",
        "title": "Answered.",
        "model": "starter",
        "request_id": "req_1",
        "time": 1_800_000_000.5,
        "data": {"n": 1},
    }


def test_events_come_over_a_websocket(tmp_path: Path) -> None:
    with plugged(tmp_path) as plugin, websocket(plugin) as connection:
        plugin.tell(request_id="req_1")
        plugin.tell(request_id="req_2")
        assert [received(connection)["request_id"] for _ in range(2)] == ["req_1", "req_2"]


def test_what_a_websocket_says_is_not_minded(tmp_path: Path) -> None:
    with plugged(tmp_path) as plugin, websocket(plugin) as connection:
        connection.send("hello?")
        connection.send(b"\x00")
        plugin.tell(request_id="req_1")
        assert received(connection)["request_id"] == "req_1"


def test_who_comes_back_goes_on_after_the_last_event_it_has_seen(tmp_path: Path) -> None:
    with plugged(tmp_path) as plugin:
        with sse(plugin) as stream:
            plugin.tell(title="one")
            last, _ = stream.event()
        plugin.tell(title="two")
        plugin.tell(title="three")
        with sse(plugin, last_id=last) as stream:
            assert [stream.event()[1]["title"] for _ in range(2)] == ["two", "three"]
        with websocket(plugin, f"?last_event_id={last}") as connection:
            assert [received(connection)["title"] for _ in range(2)] == ["two", "three"]


def test_an_event_with_strange_data_harms_nobody(tmp_path: Path) -> None:
    data = {"speed": float("nan"), 7: {"set"}, "path": Path("/x"), "half": "\ud83d", "list": (1, float("inf"))}
    with plugged(tmp_path) as plugin, websocket(plugin) as connection:
        plugin.tell(data=data)
        assert received(connection)["data"] == {
            "speed": None,
            "7": ["set"],
            "path": "/x",
            "half": "?",
            "list": [1, None],
        }


def test_who_comes_first_hears_only_what_is_new(tmp_path: Path) -> None:
    with plugged(tmp_path) as plugin:
        plugin.tell(title="old")
        with sse(plugin) as stream:
            plugin.tell(title="new")
            assert stream.event()[1]["title"] == "new"


def test_only_what_was_asked_for_comes(tmp_path: Path) -> None:
    query = "?kind=failed&kind=slow&level=warning&model=starter"
    with plugged(tmp_path) as plugin, sse(plugin, query) as stream, websocket(plugin, query) as connection:
        for kind, level, model in (
            ("completed", "error", "starter"),
            ("slow", "info", "starter"),
            ("slow", "warning", "other"),
            ("slow", "warning", None),
            ("failed", "error", "starter"),
        ):
            plugin.tell(kind, level, model=model)
        assert stream.event()[1]["kind"] == received(connection)["kind"] == "failed"


@pytest.mark.parametrize(
    ("query", "param"), [("?level=loud", "level"), ("?kinds=failed", "kinds"), ("?level=", "level")]
)
def test_a_wrong_question_is_refused(tmp_path: Path, query: str, param: str) -> None:
    with plugged(tmp_path) as plugin:
        response = httpx2.get(f"{plugin.url}/v1/events{query}")
        with pytest.raises(InvalidStatus) as refusal:
            websocket(plugin, query)
    assert response.status_code == refusal.value.response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert json.loads(refusal.value.response.body or b"") == response.json()


def test_one_client_too_many_is_refused_until_another_leaves(tmp_path: Path) -> None:
    with plugged(tmp_path, {"most_streams": 1}) as plugin:
        with websocket(plugin) as connection:
            plugin.tell()
            received(connection)  # so it is there
            response = httpx2.get(f"{plugin.url}/v1/events")
            assert (response.status_code, response.headers["retry-after"]) == (503, "10")
            with pytest.raises(InvalidStatus):
                websocket(plugin)
        assert any(_is_let_in(plugin) for _ in range(1000))


def _is_let_in(plugin: Plugged) -> bool:
    with httpx2.stream("GET", f"{plugin.url}/v1/events") as response:
        return response.status_code == 200


def test_a_head_request_is_answered_and_takes_no_place(tmp_path: Path) -> None:
    with plugged(tmp_path, {"most_streams": 1}) as plugin:
        for _ in range(3):
            assert httpx2.head(f"{plugin.url}/v1/events").status_code == 200
        with sse(plugin):
            pass


def test_silence_is_broken_by_heartbeats(tmp_path: Path) -> None:
    with (
        plugged(tmp_path, {"heartbeat_seconds": 0.05}) as plugin,
        sse(plugin) as stream,
        websocket(plugin) as connection,
    ):
        assert stream.block() == {"": "heartbeat"}
        assert received(connection) == {"kind": "heartbeat"}


def test_a_client_that_is_too_slow_is_sent_away_and_can_come_back(tmp_path: Path) -> None:
    title = "x" * 100_000
    with plugged(tmp_path, {"stream_history": 100}) as plugin:
        assert plugin.plugin._notifier is not None
        feed = plugin.plugin._notifier.feed
        with connect(f"ws{plugin.url.removeprefix('http')}/v1/events", max_queue=1) as connection:
            plugin.tell(title="first")
            received(connection)
            [subscription] = feed._subscriptions
            # Nobody reads: what the kernel and the server hold in between fills, and then the history passes it by.
            while subscription.position + 100 >= feed._number or feed._number < 500:
                plugin.tell(title=title)
            last = None
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    last = received(connection)["id"]
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, "last_event_id" in closed.value.rcvd.reason) == (1013, True)
        with websocket(plugin, f"?last_event_id={last}") as connection:
            assert received(connection)["title"] == title


def test_a_stream_of_server_sent_events_ends_when_its_client_is_too_slow(tmp_path: Path) -> None:
    title = "x" * 100_000
    with plugged(tmp_path, {"stream_history": 100}) as plugin:
        assert plugin.plugin._notifier is not None
        feed = plugin.plugin._notifier.feed
        with sse(plugin) as stream:
            plugin.tell(title="first")
            last, _ = stream.event()
            [subscription] = feed._subscriptions
            while subscription.position + 100 >= feed._number or feed._number < 500:
                plugin.tell(title=title)
            with pytest.raises(EOFError):
                while True:
                    last, _ = stream.event()
        with sse(plugin, last_id=last) as stream:
            assert stream.event()[1]["title"] == title


def test_when_the_server_ends_the_streams_do(tmp_path: Path) -> None:
    with plugged(tmp_path) as plugin:
        stream_context = sse(plugin)
        stream = stream_context.__enter__()
        connection = websocket(plugin)
    with pytest.raises(EOFError):
        while True:
            stream.block()
    stream_context.__exit__(None, None, None)
    with connection, pytest.raises(ConnectionClosed) as closed:
        while True:
            received(connection)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


# --- The memory of the stream ----------------------------------------------------------------------------------------


def event(title: str) -> Event:
    return Event("failed", "error", title)


def titles(feed: Feed, last_id: str | None) -> list[str]:
    position = feed._position(last_id)
    return [entry.event.title for entry in feed.after(position)]


def test_the_stream_remembers_so_many_events() -> None:
    feed = Feed(history=3)
    for number in range(5):
        feed.publish(event(str(number)))
    run = feed.after(2)[0].id.partition("-")[0]
    assert titles(feed, f"{run}-3") == ["3", "4"]
    assert titles(feed, f"{run}-1") == ["2", "3", "4"]  # what is left of it
    assert titles(feed, f"{run}-5") == titles(feed, None) == []
    with pytest.raises(TooSlowError):
        feed.after(1)


@pytest.mark.parametrize("strange", ["", "1-1", "nonsense", "5-", "-1", "9" * 400])
def test_an_id_of_another_run_means_everything_since_this_one_began(strange: str) -> None:
    feed = Feed()
    feed.publish(event("one"))
    assert titles(feed, strange) == ["one"]


def test_an_id_of_the_future_means_from_now_on() -> None:
    feed = Feed()
    feed.publish(event("one"))
    run = feed.after(0)[0].id.partition("-")[0]
    assert titles(feed, f"{run}-{'9' * 400}") == []


def test_a_filter_without_wishes_lets_everything_pass() -> None:
    assert Filter().passes(event("one"))
