"""Webhooks, end to end: what a real HTTP receiver gets, and whether it can believe it."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import RedirectResponse, Response

from jackfield_notify import webhook
from jackfield_notify.webhook import SignatureError, verify
from notify_plugin import Plugged, plugged
from notify_receivers import Received, Receiver

SECRET = "whsec_" + base64.b64encode(b"a secret of more than 24 bytes").decode()
OTHER = "whsec_" + base64.b64encode(b"another one, long enough as well").decode()
QUICK = {"first_retry_seconds": 0.01, "longest_retry_seconds": 0.01}


def settings(receiver: Receiver, **more: Any) -> dict[str, Any]:
    target = {"type": "webhook", "url": f"{receiver.url}/hook?key=of-the-receiver", "secret": SECRET, **more}
    return {"targets": {"ops": target}, **QUICK}


def delivered(plugin: Plugged) -> int:
    assert plugin.plugin._notifier is not None
    return plugin.plugin._notifier.outbox.counts()["delivered"]


def test_an_event_arrives_signed_and_in_full(tmp_path: Path) -> None:
    with Receiver().listening() as receiver, plugged(tmp_path, settings(receiver)) as plugin:
        plugin.tell(model="starter", request_id="req_1_00000001", data={"status": 500}, time=1_800_000_000.5)
        got = receiver.next()
    assert verify(got.body, got.headers, SECRET) == got.headers["webhook-id"]
    assert got.path == "/hook"
    assert got.headers["content-type"] == "application/json"
    assert json.loads(got.body) == {
        "type": "failed",
        "timestamp": "2027-01-15T08:00:00.500000Z",
        "data": {
            "level": "error",
            "title": "It failed.",
            "model": "starter",
            "request_id": "req_1_00000001",
            "sound": True,
            "held_back": 0,
            "details": {"status": 500},
        },
    }


def test_a_failing_receiver_gets_the_message_again_under_the_same_id(tmp_path: Path) -> None:
    receiver = Receiver([Response(status_code=503), Response(status_code=429)])
    with receiver.listening(), plugged(tmp_path, settings(receiver)) as plugin:
        plugin.tell()
        attempts = [receiver.next() for _ in range(3)]
    assert len({got.headers["webhook-id"] for got in attempts}) == 1
    assert len({got.body for got in attempts}) == 1
    for got in attempts:
        verify(got.body, got.headers, SECRET)
    assert 'jackfield_notify_attempts_total{result="retried",target="ops"} 2.0' in plugin.metrics()


def test_what_the_receiver_refuses_is_a_dead_letter_and_an_event_in_the_stream(tmp_path: Path) -> None:
    receiver = Receiver([Response(status_code=404)])
    with receiver.listening(), plugged(tmp_path, settings(receiver)) as plugin:
        plugin.tell(request_id="req_1")
        told = plugin.server.emitted.get(timeout=60)
        assert plugin.plugin._notifier is not None
        [dead] = plugin.plugin._notifier.outbox.messages("dead")
    assert dead.error == "The receiver answered 404."
    assert (told.kind, told.level, told.request_id) == ("notification_dead", "warning", "req_1")
    assert told.data["message"] == dead.id


def test_the_event_of_a_dead_letter_is_not_forwarded_itself(tmp_path: Path) -> None:
    with Receiver().listening() as receiver, plugged(tmp_path, settings(receiver)) as plugin:
        plugin.tell("notification_dead", "warning", "A notification could not be delivered.")
        plugin.tell("failed")
        assert json.loads(receiver.next().body)["type"] == "failed"


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    with Receiver().listening() as elsewhere:
        receiver = Receiver([RedirectResponse(f"{elsewhere.url}/stolen", 307)])
        with receiver.listening(), plugged(tmp_path, settings(receiver)) as plugin:
            plugin.tell()
            told = plugin.server.emitted.get(timeout=60)
        assert elsewhere.count == 0
    assert "Redirects are not followed" in told.title


def test_a_receiver_that_is_away_gets_the_message_when_it_is_back(tmp_path: Path) -> None:
    receiver = Receiver()
    with receiver.listening():
        gone = settings(receiver)
    with plugged(tmp_path, {**gone, "drain_seconds": 0}) as plugin:
        plugin.tell()
    assert plugin.plugin._notifier is not None
    with receiver.listening(), plugged(tmp_path, settings(receiver)):
        assert json.loads(receiver.next().body)["type"] == "failed"


def test_while_a_secret_is_replaced_messages_are_signed_with_both(tmp_path: Path) -> None:
    with (
        Receiver().listening() as receiver,
        plugged(tmp_path, settings(receiver, previous_secret=OTHER)) as plugin,
    ):
        plugin.tell()
        got = receiver.next()
    assert verify(got.body, got.headers, SECRET) == verify(got.body, got.headers, OTHER)


# --- verify ----------------------------------------------------------------------------------------------------------


def signed(body: bytes = b"{}", at: int = 1000, secret: str = SECRET) -> Received:
    headers = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(at),
        "Webhook-Signature": webhook.sign(secret, "msg_1", at, body),
    }
    return Received("/", headers, body)


def test_the_signature_is_that_of_the_standard() -> None:
    # Computed with OpenSSL: printf 'msg_1.1000.{}' | openssl dgst -sha256 -mac HMAC -macopt key:'...' -binary | base64
    assert webhook.sign(SECRET, "msg_1", 1000, b"{}") == "v1,x0dRV/3zMsWRJG5npkTQGXpU2RzdoYuxtxsh6B0va5E="


def test_a_message_is_believed_within_the_replay_window_only() -> None:
    got = signed(at=1000)
    for now in (700, 1000, 1300):
        assert verify(got.body, got.headers, SECRET, now=now) == "msg_1"
    for now in (699, 1301):
        with pytest.raises(SignatureError, match="seconds ago"):
            verify(got.body, got.headers, SECRET, now=now)
    assert verify(got.body, got.headers, SECRET, now=5000, tolerance=4000) == "msg_1"


@pytest.mark.parametrize(
    "change",
    [
        {"body": b"{ }"},
        {"headers": {"Webhook-Id": "msg_2"}},
        {"headers": {"Webhook-Timestamp": "1001"}},
        {"headers": {"Webhook-Signature": "v1,AAAA"}},
        {"headers": {"Webhook-Signature": "ä"}},
        {"headers": {"Webhook-Signature": ""}},
        {"headers": {"Webhook-Timestamp": "yesterday"}},
        {"secret": OTHER},
    ],
)
def test_nothing_that_was_changed_is_believed(change: dict[str, Any]) -> None:
    got = signed()
    headers = {**got.headers, **change.get("headers", {})}
    with pytest.raises(SignatureError):
        verify(change.get("body", got.body), headers, change.get("secret", SECRET), now=1000)


def test_a_missing_header_is_named() -> None:
    got = signed()
    del got.headers["Webhook-Id"]
    with pytest.raises(SignatureError, match="webhook-id"):
        verify(got.body, got.headers, SECRET, now=1000)


def test_any_of_several_secrets_and_signatures_may_be_right() -> None:
    got = signed(secret=OTHER)
    got.headers["Webhook-Signature"] = f"v1a,xyz v1,AAAA {got.headers['Webhook-Signature']}"
    assert verify(got.body, got.headers, [SECRET, OTHER], now=1000) == "msg_1"


def test_the_clock_is_the_machines_own_unless_told_otherwise() -> None:
    got = signed(at=int(time.time()))
    assert verify(got.body, got.headers, SECRET) == "msg_1"


def test_a_new_secret_is_one_that_can_be_used() -> None:
    first, second = webhook.new_secret(), webhook.new_secret()
    assert first != second
    assert len(webhook.key(first)) == 32


@pytest.mark.parametrize(
    "secret", ["", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%", SECRET.removeprefix("whsec_")]
)
def test_a_weak_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64"):
        webhook.key(secret)
