"""The REST routes: preferences, targets, devices, the outbox."""

import json
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import Response

from jackfield_notify import database, delivery
from jackfield_notify.settings import Settings
from notify_apns import Apple
from notify_plugin import Plugged, plugged
from notify_receivers import Receiver

SECRET = "whsec_" + "QUJD" * 10
SETTINGS = "/v1/notifications/settings"
DEVICES = "/v1/notifications/devices"
OUTBOX = "/v1/notifications/outbox"
TOKEN = "ab" * 32


def ops(url: str = "http://user:hunter2@127.0.0.1:9/hook") -> dict[str, Any]:
    return {"targets": {"ops": {"type": "webhook", "url": url, "secret": SECRET}}, "drain_seconds": 0}


@contextmanager
def client(plugin: Plugged) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=plugin.url) as client:
        yield client


def error(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code", "category", "suggestions"}
    return found


# --- Preferences -----------------------------------------------------------------------------------------------------


def test_preferences_that_are_put_hold_at_once_and_after_a_restart(tmp_path: Path) -> None:
    wanted = {
        "enabled": True,
        "sound": False,
        "rules": [{"kinds": ["completed"], "targets": ["ops"], "throttle": {"messages": 3, "seconds": 60}}],
        "quiet_hours": [{"start": "22:30", "end": "07:00", "time_zone": "Europe/Berlin"}],
    }
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        answer = http.put(SETTINGS, json=wanted)
        assert answer.status_code == 200
        assert answer.json()["rules"][0]["throttle"] == {"messages": 3, "seconds": 60}
        assert answer.json()["quiet_hours"][0]["start"] == "22:30"
        assert http.get(SETTINGS).json() == answer.json()
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        assert http.get(SETTINGS).json() == answer.json()
    assert stat.S_IMODE((tmp_path / "preferences.json").stat().st_mode) == 0o600


def test_what_get_answers_can_be_put_again(tmp_path: Path) -> None:
    with plugged(tmp_path, {**ops(), "preferences": {"sound": False}}) as plugin, client(plugin) as http:
        document = http.get(SETTINGS).json()
        assert document["sound"] is False
        assert http.put(SETTINGS, json=document).json() == document


def test_stored_preferences_win_over_the_file_until_they_are_deleted(tmp_path: Path) -> None:
    settings = {**ops(), "preferences": {"sound": False}}
    with plugged(tmp_path, settings) as plugin, client(plugin) as http:
        assert http.put(SETTINGS, json={"sound": True}).json()["sound"] is True
        assert http.delete(SETTINGS).json()["sound"] is False
        assert http.delete(SETTINGS).status_code == 200
    with plugged(tmp_path, settings) as plugin, client(plugin) as http:
        assert http.get(SETTINGS).json()["sound"] is False


def test_preferences_decide_what_is_sent_from_then_on(tmp_path: Path) -> None:
    with Receiver().listening() as receiver, plugged(tmp_path, ops(receiver.url)) as plugin, client(plugin) as http:
        http.put(SETTINGS, json={"rules": [{"kinds": ["completed"]}]})
        plugin.tell("failed")
        plugin.tell("completed", "info")
        assert json.loads(receiver.next().body)["type"] == "completed"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[]", "invalid_value", None),
        (b"\xff", "invalid_json", None),
        (b'{"sounds": true}', "unknown_parameter", "sounds"),
        (b'{"rules": [{"kind": "failed"}]}', "unknown_parameter", "rules.0.kind"),
        (b'{"rules": [{"minimum_level": "loud"}]}', "invalid_value", "rules.0.minimum_level"),
        (b'{"rules": [{"throttle": {"messages": 0, "seconds": 1}}]}', "invalid_value", "rules.0.throttle.messages"),
        (b'{"rules": [{"throttle": {"messages": 1}}]}', "missing_required_parameter", "rules.0.throttle.seconds"),
        (b'{"rules": [{"deduplicate_seconds": -1}]}', "invalid_value", "rules.0.deduplicate_seconds"),
        (b'{"rules": [{"deduplicate_seconds": NaN}]}', "invalid_value", "rules.0.deduplicate_seconds"),
        (b'{"quiet_hours": [{"start": "22:00"}]}', "missing_required_parameter", "quiet_hours.0.end"),
        (b'{"quiet_hours": [{"start": "10 pm", "end": "07:00"}]}', "invalid_value", "quiet_hours.0.start"),
        (b'{"rules": [{"targets": ["nobody"]}]}', "unknown_target", "rules"),
    ],
)
def test_wrong_preferences_are_refused_and_change_nothing(
    tmp_path: Path, body: bytes, code: str, param: str | None
) -> None:
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        before = http.get(SETTINGS).json()
        refusal = error(http.put(SETTINGS, content=body), 400)
        assert (refusal["type"], refusal["code"], refusal["param"]) == ("invalid_request_error", code, param)
        assert refusal["suggestions"]
        assert http.get(SETTINGS).json() == before
    assert not (tmp_path / "preferences.json").exists()


def test_a_misspelt_name_gets_a_hint(tmp_path: Path) -> None:
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        assert error(http.put(SETTINGS, json={"sounds": True}), 400)["suggestions"] == ["Did you mean 'sound'?"]


def test_a_huge_document_is_refused(tmp_path: Path) -> None:
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        assert error(http.put(SETTINGS, content=b" " * 300_000), 413)["code"] == "payload_too_large"


def test_damaged_preferences_are_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "preferences.json").write_text('{"sound": "perhaps"')
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        assert http.get(SETTINGS).json()["sound"] is True
    [aside] = tmp_path.glob("preferences.json.damaged-*")
    assert aside.read_text() == '{"sound": "perhaps"'
    assert str(aside) in caplog.text


def test_stored_rules_may_name_targets_that_have_been_removed(tmp_path: Path) -> None:
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        http.put(SETTINGS, json={"rules": [{"targets": ["ops"]}]})
    with plugged(tmp_path) as plugin, client(plugin) as http:
        assert http.get(SETTINGS).json()["rules"][0]["targets"] == ["ops"]
        plugin.tell()


# --- Targets ---------------------------------------------------------------------------------------------------------


def test_secrets_are_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    settings = ops()
    with plugged(tmp_path, settings) as plugin, client(plugin) as http:
        plugin.tell()
        assert http.get("/v1/notifications/targets").json()["data"] == [{"name": "ops", "type": "webhook"}]
        shown = "".join(http.get(path).text for path in (SETTINGS, DEVICES, OUTBOX, "/v1/notifications/targets"))
        report = plugin.plugin.configure().model_validate(settings).model_dump_json()
    for text in (shown, report, caplog.text, plugin.metrics()):
        assert "hunter2" not in text
        assert SECRET not in text


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"type": "webhook", "url": "ftp://host", "secret": SECRET}, "https://"),
        ({"type": "webhook", "url": "https://", "secret": SECRET}, "name a host"),
        ({"type": "webhook", "url": "https://host", "secret": "hunter2"}, "jackfield notify secret"),
        ({"type": "webhook", "url": "https://host"}, "Field required"),
        ({"type": "pigeon"}, "'apprise', 'webhook', 'apns'"),
        ({"type": "apns", "key_file": "/nowhere", "key_id": "1", "team_id": "2", "topic": "x"}, "path"),
    ],
)
def test_impossible_targets_are_refused(tmp_path: Path, target: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal, plugged(tmp_path, {"targets": {"ops": target}}):
        pass
    assert "hunter2" not in str(refusal.value)


def test_rules_of_the_file_name_known_targets() -> None:
    with pytest.raises(ValueError, match="'nobody', which is not among the targets"):
        Settings.model_validate({"preferences": {"rules": [{"targets": ["nobody"]}]}})


# --- Devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def apple(tmp_path: Path) -> Apple:
    """One that does not listen: nothing is sent here."""
    apple = Apple(tmp_path)
    apple.url = "https://127.0.0.1:9"
    return apple


def test_devices_register_are_listed_and_leave(tmp_path: Path, apple: Apple) -> None:
    with plugged(tmp_path, {"targets": {"app": apple.target()}, "drain_seconds": 0}) as plugin, client(plugin) as http:
        made = http.post(DEVICES, json={"token": TOKEN, "name": "Anna's phone"})
        assert made.status_code == 201
        device = made.json()
        assert (device["target"], device["name"], device["token"]) == ("app", "Anna's phone", "abab…abab")
        assert http.post(DEVICES, json={"token": TOKEN.upper()}).json()["id"] == device["id"]
        assert [one["id"] for one in http.get(DEVICES).json()["data"]] == [device["id"]]
        assert http.delete(f"{DEVICES}/{device['id']}").status_code == 204
        assert error(http.delete(f"{DEVICES}/{device['id']}"), 404)["code"] == "not_found"
        http.post(DEVICES, json={"token": TOKEN})
        assert http.delete(f"{DEVICES}/{TOKEN}").status_code == 204
        assert http.get(DEVICES).json()["data"] == []


def test_a_removed_device_is_told_nothing_more(tmp_path: Path, apple: Apple) -> None:
    with plugged(tmp_path, {"targets": {"app": apple.target()}, "drain_seconds": 0}) as plugin, client(plugin) as http:
        device = http.post(DEVICES, json={"token": TOKEN}).json()
        plugin.tell()
        http.delete(f"{DEVICES}/{device['id']}")
        [letter] = http.get(f"{OUTBOX}?state=dead").json()["data"]
    assert letter["error"] == "The device was removed."
    assert TOKEN not in json.dumps(letter)


@pytest.mark.parametrize("token", ["", "zz" * 32, "ab" * 31, "a" * 65, "ab" * 101, "ab" * 31 + "/.", " "])
def test_a_token_that_is_none_is_refused(tmp_path: Path, apple: Apple, token: str) -> None:
    with plugged(tmp_path, {"targets": {"app": apple.target()}}) as plugin, client(plugin) as http:
        assert error(http.post(DEVICES, json={"token": token}), 400)["param"] == "token"
        assert http.get(DEVICES).json()["data"] == []


def test_devices_need_a_target_of_theirs(tmp_path: Path, apple: Apple) -> None:
    two = {"targets": {"app": apple.target(), "beta": apple.target(), **ops()["targets"]}, "drain_seconds": 0}
    for name in ("none", "two"):
        (tmp_path / name).mkdir()
    with plugged(tmp_path / "none", ops()) as plugin, client(plugin) as http:
        assert error(http.post(DEVICES, json={"token": TOKEN}), 400)["code"] == "unknown_target"
    with plugged(tmp_path / "two", two) as plugin, client(plugin) as http:
        assert "app, beta" in error(http.post(DEVICES, json={"token": TOKEN}), 400)["suggestions"][0]
        assert error(http.post(DEVICES, json={"token": TOKEN, "target": "ops"}), 400)["code"] == "unknown_target"
        assert http.post(DEVICES, json={"token": TOKEN, "target": "beta"}).json()["target"] == "beta"


# --- The outbox ------------------------------------------------------------------------------------------------------


def test_dead_letters_are_shown_and_sent_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 3600.0)
    receiver = Receiver([Response(status_code=404)])
    with receiver.listening(), plugged(tmp_path, ops(receiver.url)) as plugin, client(plugin) as http:
        plugin.tell(request_id="req_1")
        first = receiver.next()
        plugin.server.emitted.get(timeout=60)
        shown = http.get(f"{OUTBOX}?state=dead").json()
        [letter] = shown["data"]
        assert (letter["error"], letter["request_id"]) == ("The receiver answered 404.", "req_1")
        assert shown["counts"]["dead"] == 1
        assert http.post(f"{OUTBOX}/retry", json={"ids": [letter["id"]]}).json() == {"retried": [letter["id"]]}
        assert receiver.next().headers["webhook-id"] == first.headers["webhook-id"] == letter["id"]


def test_while_another_process_holds_the_outbox_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with Receiver().listening() as receiver, plugged(tmp_path, ops(receiver.url)) as plugin, client(plugin) as http:
        with closing(sqlite3.connect(tmp_path / "notify.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            plugin.tell(title="one")
            assert error(http.get(OUTBOX), 503)["suggestions"] == ["Try again in a few seconds."]
            assert "jackfield_notify_messages{" not in plugin.metrics()
            other.execute("ROLLBACK")
        plugin.tell(title="two")
        arrived = {json.loads(receiver.next().body)["data"]["title"] for _ in range(2)}
    assert arrived == {"one", "two"}


def test_preferences_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "preferences.json.new").mkdir()
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        assert "cannot be written" in error(http.put(SETTINGS, json={"sound": False}), 503)["message"]
        assert http.get(SETTINGS).json()["sound"] is True


def test_there_is_nothing_to_send_again(tmp_path: Path) -> None:
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        assert http.post(f"{OUTBOX}/retry", json={}).json() == {"retried": []}
        assert error(http.post(f"{OUTBOX}/retry", json={"ids": ["nothing"]}), 404)["param"] == "ids"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("state=lost", "state"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=1001", "limit"),
        ("limit=²", "limit"),
    ],
)
def test_a_wrong_question_about_the_outbox_is_refused(tmp_path: Path, query: str, param: str) -> None:
    with plugged(tmp_path, ops()) as plugin, client(plugin) as http:
        assert error(http.get(f"{OUTBOX}?{query}"), 400)["param"] == param


def test_the_metrics_say_what_waits_and_what_was_kept_back(tmp_path: Path) -> None:
    with plugged(tmp_path, {**ops(), "first_retry_seconds": 3600, "longest_retry_seconds": 3600}) as plugin:
        plugin.tell()
        plugin.tell()
        metrics = plugin.metrics()
    assert 'jackfield_notify_suppressed_total{reason="duplicate"} 1.0' in metrics
    assert 'jackfield_notify_messages{state="dead"} 0.0' in metrics
    assert 'jackfield_notify_messages{state="lost"} 0.0' in metrics
