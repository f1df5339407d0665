"""Whatever Apprise speaks, end to end: its JSON and ntfy services against a real HTTP server."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response

from jackfield_notify.settings import Settings
from notify_plugin import plugged
from notify_receivers import Receiver


def settings(receiver: Receiver, scheme: str = "json", path: str = "/topic") -> dict[str, Any]:
    url = f"{scheme}://user:hunter2@{receiver.url.removeprefix('http://')}{path}"
    target = {"type": "apprise", "url": url}
    return {"targets": {"chat": target}, "first_retry_seconds": 0.01, "longest_retry_seconds": 0.01}


def test_an_event_arrives_as_text(tmp_path: Path) -> None:
    with Receiver().listening() as receiver, plugged(tmp_path, settings(receiver)) as plugin:
        plugin.tell("engine_failed", title="The engine failed.", model="starter", request_id="req_1")
        got = receiver.next()
    told = json.loads(got.body)
    assert (told["title"], told["type"]) == ("Engine failed", "failure")
    assert told["message"] == "The engine failed.\nModel: starter\nRequest: req_1"
    assert got.headers["authorization"] == "Basic " + base64.b64encode(b"user:hunter2").decode()


def test_ntfy_gets_it_too(tmp_path: Path) -> None:
    ok = Response("{}", media_type="application/json")
    with (
        Receiver([ok]).listening() as receiver,
        plugged(tmp_path, settings(receiver, "ntfy", "/my-topic")) as plugin,
    ):
        plugin.tell("memory_pressure", "warning", "Memory is short.")
        told = json.loads(receiver.next().body)
    assert (told["topic"], told["title"], told["message"]) == ("my-topic", "Memory pressure", "Memory is short.")


def test_a_failure_is_tried_again_and_its_reason_holds_no_secret(tmp_path: Path) -> None:
    receiver = Receiver([Response("hunter2", 500)])
    with receiver.listening(), plugged(tmp_path, settings(receiver)) as plugin:
        plugin.tell()
        first, second = receiver.next(), receiver.next()
        assert plugin.plugin._notifier is not None
    assert first.body == second.body
    assert 'jackfield_notify_attempts_total{result="retried",target="chat"} 1.0' in plugin.metrics()


def test_the_reason_of_a_failure_is_shown(tmp_path: Path) -> None:
    receiver = Receiver([Response("hunter2", 500)])
    with receiver.listening(), plugged(tmp_path, {**settings(receiver), "give_up_seconds": 0.001}) as plugin:
        plugin.tell()
        told = plugin.server.emitted.get(timeout=60)
    assert "JSON" in told.title
    assert "500" in told.title
    assert "hunter2" not in told.title


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    with Receiver().listening() as elsewhere:
        receiver = Receiver([RedirectResponse(f"{elsewhere.url}/stolen", 307)])
        with receiver.listening(), plugged(tmp_path, {**settings(receiver), "give_up_seconds": 0.001}) as plugin:
            plugin.tell()
            plugin.server.emitted.get(timeout=60)
        assert elsewhere.count == 0


@pytest.mark.parametrize("url", ["nosuch://service", "slack://too-short", ""])
def test_a_url_that_apprise_does_not_understand_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValidationError, match="Apprise does not understand it") as refusal:
        Settings.model_validate({"targets": {"chat": {"type": "apprise", "url": url}}})
    assert not url or url not in refusal.value.json(include_input=False)
