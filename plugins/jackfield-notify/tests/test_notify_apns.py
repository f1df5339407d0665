"""Apple push, end to end, against a server that speaks HTTP/2 and answers as Apple's does."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError
from starlette.responses import Response

from jackfield.errors import ConfigurationError
from jackfield.hooks import Event
from jackfield_notify.delivery import Backoff
from jackfield_notify.devices import Device
from jackfield_notify.notification import Notification
from jackfield_notify.notifier import Notifier
from jackfield_notify.settings import Settings
from jackfield_notify.targets import apns
from jackfield_notify.targets.provider_token import ProviderToken
from notify_apns import KEY_ID, TEAM_ID, TOPIC, Apple, answer
from notify_plugin import plugged
from notify_receivers import ScriptedClock

PHONE, TABLET = "a1" * 32, "b2" * 32


@dataclass
class Pusher:
    """The plugin's inside, on a scripted clock."""

    notifier: Notifier
    clock: ScriptedClock
    apple: Apple

    def register(self, *tokens: str) -> None:
        for token in tokens:
            self.notifier.devices.register(Device("app", token, "", self.clock()))

    def tell(self, level: str = "error", title: str = "It failed.", **more: Any) -> None:
        self.notifier.tell(Event("failed", level, title, **more))  # type: ignore[arg-type]

    def deliver(self) -> None:
        asyncio.run(self._deliver())

    async def _deliver(self) -> None:
        courier = self.notifier.courier("app")
        try:
            await courier.deliver_due()
        finally:
            await courier.sender.close()

    def errors(self, state: Any = "dead") -> list[str | None]:
        return [message.error for message in self.notifier.outbox.messages(state)]


@pytest.fixture
def apple(tmp_path: Path) -> Iterator[Apple]:
    with Apple(tmp_path).serving() as apple:
        yield apple


@pytest.fixture
def pusher(tmp_path: Path, apple: Apple) -> Iterator[Pusher]:
    clock = ScriptedClock()
    rules = {"rules": [{"deduplicate_seconds": 0}]}
    settings = Settings.model_validate({"targets": {"app": apple.target()}, "preferences": rules})
    notifier = Notifier(tmp_path, settings, clock=clock, backoff=Backoff(10, 500, chance=lambda: 0.0))
    yield Pusher(notifier, clock, apple)
    notifier.close()


def test_a_registered_device_is_pushed_to_as_apple_asks(pusher: Pusher) -> None:
    pusher.register(PHONE)
    pusher.tell(model="starter", request_id="req_1")
    [queued] = pusher.notifier.outbox.messages("queued")
    pusher.deliver()
    [push] = pusher.apple.pushes
    assert (push.device, push.http_version) == (PHONE, "2")
    assert push.headers["apns-topic"] == TOPIC
    assert push.headers["apns-push-type"] == "alert"
    assert push.headers["apns-priority"] == "10"
    assert push.headers["apns-id"] == queued.id
    assert push.headers["apns-expiration"] == str(1_800_000_000 + 86400)
    assert len(push.headers["apns-collapse-id"].encode()) <= 64
    assert pusher.apple.claims(push) == {"iss": TEAM_ID, "iat": 1_800_000_000}
    assert push.payload["aps"]["alert"] == {"title": "Failed", "body": "It failed.\nModel: starter\nRequest: req_1"}
    assert push.payload["aps"]["sound"] == "default"
    assert push.payload["jackfield"]["request_id"] == "req_1"
    assert pusher.notifier.outbox.counts()["delivered"] == 1


def test_every_device_gets_its_own_message(pusher: Pusher) -> None:
    pusher.register(PHONE, TABLET)
    pusher.tell()
    pusher.deliver()
    assert {push.device for push in pusher.apple.pushes} == {PHONE, TABLET}
    assert len({push.headers["apns-id"] for push in pusher.apple.pushes}) == 2
    assert len({push.headers["apns-collapse-id"] for push in pusher.apple.pushes}) == 1


def test_a_message_without_a_sound_is_passive_and_spares_the_battery(pusher: Pusher) -> None:
    silent = pusher.notifier.preferences.model_copy(update={"sound": False})
    pusher.notifier.prefer(silent)
    pusher.register(PHONE)
    pusher.tell(level="info")
    pusher.deliver()
    [push] = pusher.apple.pushes
    assert "sound" not in push.payload["aps"]
    assert push.payload["aps"]["interruption-level"] == "passive"
    assert push.headers["apns-priority"] == "5"


def test_an_unregistered_device_is_forgotten_and_the_others_are_not(pusher: Pusher) -> None:
    pusher.apple.gone.add(PHONE)
    pusher.register(PHONE, TABLET)
    pusher.tell()
    pusher.deliver()
    assert [device.token for device in pusher.notifier.devices.all()] == [TABLET]
    assert pusher.errors() == ["Apple answered 410 Unregistered. The device was forgotten."]
    assert pusher.notifier.outbox.counts()["delivered"] == 1


def test_a_device_that_has_registered_again_since_is_kept(pusher: Pusher) -> None:
    before = int(pusher.clock() - 60) * 1000
    pusher.apple.answers = [answer(410, "Unregistered", timestamp=before)]
    pusher.register(PHONE)
    pusher.tell()
    pusher.deliver()
    assert [device.token for device in pusher.notifier.devices.all()] == [PHONE]


def test_a_bad_token_is_forgotten(pusher: Pusher) -> None:
    pusher.apple.bad.add(PHONE)
    pusher.register(PHONE)
    pusher.tell()
    pusher.deliver()
    assert pusher.notifier.devices.all() == []
    [error] = pusher.errors()
    assert error is not None
    assert error.startswith("Apple answered 400 BadDeviceToken.")


def test_too_many_requests_are_tried_again_later(pusher: Pusher) -> None:
    pusher.apple.busy.add(PHONE)
    pusher.register(PHONE)
    pusher.tell()
    pusher.deliver()
    assert pusher.errors("queued") == ["Apple answered 429 TooManyRequests."]
    assert pusher.notifier.outbox.next_due("app") == pusher.clock() + 10
    pusher.apple.busy.clear()
    pusher.clock.advance(10)
    pusher.deliver()
    first, second = pusher.apple.pushes
    assert first.headers["apns-id"] == second.headers["apns-id"]
    assert pusher.notifier.outbox.counts()["delivered"] == 1


@pytest.mark.parametrize(
    ("response", "delay"),
    [
        (answer(503, "ServiceUnavailable", Retry_After="77"), 77),
        (answer(503, "Shutdown"), 10),
        (answer(500, "InternalServerError"), 10),
        (answer(400, "IdleTimeout"), 10),
        (answer(429, "TooManyProviderTokenUpdates"), 1200),
        (Response("<html>", 502), 10),
    ],
)
def test_what_passes_is_tried_again(pusher: Pusher, response: Response, delay: float) -> None:
    pusher.apple.answers = [response]
    pusher.register(PHONE)
    pusher.tell()
    pusher.deliver()
    assert pusher.notifier.outbox.next_due("app") == pusher.clock() + delay
    assert pusher.notifier.devices.all() != []


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (answer(400, "DeviceTokenNotForTopic"), "bundle id of the app that registered"),
        (answer(403, "InvalidProviderToken"), "key_file, key_id and team_id"),
        (answer(413, "PayloadTooLarge"), "413 PayloadTooLarge"),
        (answer(404, "BadPath"), "404 BadPath"),
    ],
)
def test_what_does_not_pass_is_a_dead_letter(pusher: Pusher, response: Response, words: str) -> None:
    pusher.apple.answers = [response]
    pusher.register(PHONE)
    pusher.tell()
    pusher.deliver()
    [error] = pusher.errors()
    assert error is not None
    assert words in error
    assert pusher.notifier.devices.all() != []


def test_apple_out_of_reach_is_tried_again(tmp_path: Path, pusher: Pusher) -> None:
    target = pusher.notifier.settings.targets["app"].model_copy(update={"server": "https://localhost:9"})
    pusher.notifier.settings.targets["app"] = target
    pusher.register(PHONE)
    pusher.tell()
    pusher.deliver()
    assert pusher.errors("queued") == ["No answer from Apple: ConnectError."]


# --- The provider token ----------------------------------------------------------------------------------------------


def tokens(pusher: Pusher, gaps: list[float], answers: dict[int, Response] | None = None) -> list[int]:
    """When the tokens of pushes were issued, in seconds since the first push, after these gaps of time."""

    async def push_all() -> None:
        courier = pusher.notifier.courier("app")
        for number, gap in enumerate(gaps):
            pusher.clock.advance(gap)
            pusher.apple.answers = [answers[number]] if answers and number in answers else []
            pusher.tell()
            await courier.deliver_due()
        await courier.sender.close()

    pusher.register(PHONE)
    begun = int(pusher.clock()) + int(gaps[0])
    asyncio.run(push_all())
    return [pusher.apple.claims(push)["iat"] - begun for push in pusher.apple.pushes]


def test_one_token_serves_for_forty_minutes(pusher: Pusher) -> None:
    minute = 60
    assert tokens(pusher, [0, 20 * minute, 19 * minute, 2 * minute]) == [0, 0, 0, 41 * minute]


def test_an_expired_token_is_renewed_and_the_push_repeated_at_once(pusher: Pusher) -> None:
    expired = answer(403, "ExpiredProviderToken")
    assert tokens(pusher, [0, 1500], {1: expired}) == [0, 0, 1500]
    assert pusher.notifier.outbox.counts()["delivered"] == 2


def test_a_token_is_never_renewed_twice_within_twenty_minutes(pusher: Pusher) -> None:
    expired = answer(403, "ExpiredProviderToken")
    assert tokens(pusher, [0, 300], {1: expired}) == [0, 0]
    assert pusher.notifier.outbox.next_due("app") == pusher.clock() + 900
    [error] = pusher.errors("queued")
    assert error is not None
    assert "clock" in error


def test_many_pushes_that_hear_of_the_expiry_at_once_renew_it_once(apple: Apple) -> None:
    clock = ScriptedClock()
    token = ProviderToken(apple.key_file, KEY_ID, TEAM_ID, clock)
    old = token.current()
    clock.advance(1500)
    assert [token.refused(old) for _ in range(5)] == [0.0] * 5
    assert token.current() != old
    renewed = token.current()
    assert token.refused(old) == 0.0
    assert token.current() == renewed


def test_a_target_without_a_key_is_refused_with_the_settings(apple: Apple) -> None:
    apple.key_file.write_text("no key")
    with pytest.raises(ValidationError, match="does not hold a key for APNs"):
        Settings.model_validate({"targets": {"app": apple.target()}})


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_without_a_key_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.p8"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="does not hold a key") as refusal:
        ProviderToken(file, KEY_ID, TEAM_ID, ScriptedClock())
    assert "AuthKey" in refusal.value.suggestions[0]


# --- What is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["x" * 10_000, "é" * 10_000, "\N{GRINNING FACE}" * 10_000, '"\\' * 5000])
def test_a_long_message_is_shortened_to_what_apple_takes(title: str) -> None:
    told = Notification.of(Event("failed", "error", title, model="m" * 3000))
    body = apns.body(told)
    assert len(body) <= 4096
    assert json.loads(body)["aps"]["alert"]["body"]


def test_devices_register_over_http_and_are_pushed_to(tmp_path: Path, apple: Apple) -> None:
    with plugged(tmp_path, {"targets": {"app": apple.target()}, "drain_seconds": 20}) as plugin:
        with httpx2.Client(base_url=plugin.url) as client:
            made = client.post("/v1/notifications/devices", json={"token": PHONE.upper(), "name": "Anna's phone"})
            assert made.status_code == 201
            listed = client.get("/v1/notifications/devices").json()["data"]
        plugin.tell()
    assert [device["name"] for device in listed] == ["Anna's phone"]
    assert PHONE not in json.dumps(listed)
    assert [push.device for push in apple.pushes] == [PHONE]
