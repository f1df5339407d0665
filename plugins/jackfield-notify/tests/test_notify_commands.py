"""``jackfield notify``, as people use it: without a server, on the same file and the same outbox."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.responses import Response

from jackfield.cli.main import main
from jackfield.hooks import Event, plugin_data_dir
from jackfield_notify import Plugin, webhook
from jackfield_notify.database import Database
from jackfield_notify.devices import Device, Devices
from jackfield_notify.notification import Notification
from jackfield_notify.outbox import Message, Outbox
from notify_apns import Apple
from notify_receivers import Receiver

SECRET = "whsec_" + "QUJD" * 10


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JACKFIELD_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def notify(*arguments: str) -> Result:
    if "notify" not in main.commands:
        Plugin().register_commands(main)
    return CliRunner().invoke(main, ["notify", *arguments], catch_exceptions=False)


def toml(folder: Path, targets: dict[str, dict[str, Any]], **settings: Any) -> str:
    lines = ["[plugins.notify]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
    for name, target in targets.items():
        lines += [
            f"[plugins.notify.targets.{name}]",
            *(f"{key} = {json.dumps(value)}" for key, value in target.items()),
        ]
    file = folder / "jackfield.toml"
    file.write_text("\n".join(lines))
    return str(file)


def hook(receiver: Receiver) -> dict[str, Any]:
    return {"type": "webhook", "url": receiver.url, "secret": SECRET}


def letters(count: int, *, dead: bool) -> list[str]:
    """Put messages into the outbox that commands look at; their ids."""
    now = time.time()
    told = Notification.of(Event("failed", "error", "It failed."))
    messages = [Message("ops", told, created=now, due=now, expires=now) for _ in range(count)]
    with closing(Database(plugin_data_dir("notify") / "notify.db")) as database:
        outbox = Outbox(database)
        outbox.put(messages)
        for message in messages if dead else []:
            outbox.dead(message.id, now, "The receiver answered 404.")
    return [message.id for message in messages]


def test_a_test_message_goes_to_every_target_and_its_outcome_is_told(tmp_path: Path) -> None:
    with Receiver().listening() as good, Receiver([Response(status_code=500)]).listening() as bad:
        config = toml(tmp_path, {"good": hook(good), "bad": hook(bad)})
        result = notify("test", "--config", config)
        got = good.next()
    assert result.exit_code == 1
    assert "good: delivered" in result.stdout
    assert "bad: failed: The receiver answered 500." in result.stderr
    webhook.verify(got.body, got.headers, SECRET)
    assert json.loads(got.body)["type"] == "test"
    assert bad.count == 1  # a test is not repeated


def test_a_test_can_be_of_one_target_only(tmp_path: Path) -> None:
    with Receiver().listening() as good, Receiver().listening() as other:
        config = toml(tmp_path, {"good": hook(good), "other": hook(other)})
        result = notify("test", "--config", config, "--target", "good", "--json")
    assert result.exit_code == 0
    [outcome] = json.loads(result.stdout)
    assert (outcome["target"], outcome["delivered"], outcome["error"]) == ("good", True, None)
    assert (good.count, other.count) == (1, 0)


def test_a_test_of_an_app_goes_to_all_its_devices(tmp_path: Path) -> None:
    with Apple(tmp_path).serving() as apple:
        config = toml(tmp_path, {"app": apple.target()})
        nobody = notify("test", "--config", config)
        with closing(Database(plugin_data_dir("notify") / "notify.db")) as database:
            for token in ("ab" * 32, "cd" * 32):
                Devices(database).register(Device("app", token, "", time.time()))
        result = notify("test", "--config", config)
    assert (nobody.exit_code, result.exit_code) == (1, 0)
    assert "No device has registered yet." in nobody.stderr
    assert "app …abab: delivered" in result.stdout
    assert len(apple.pushes) == 2


def test_dead_letters_are_listed_and_queued_again() -> None:
    first, second = letters(2, dead=True)
    shown = notify("dead")
    assert first in shown.stdout
    assert "The receiver answered 404." in shown.stdout
    assert {one["id"] for one in json.loads(notify("dead", "--json").stdout)} == {first, second}
    assert json.loads(notify("retry", first, "--json").stdout) == {"retried": [first], "missing": []}
    assert [one["id"] for one in json.loads(notify("outbox", "--json").stdout)] == [first]
    assert notify("retry", "--all").stdout == "Queued again: 1.\n"
    assert notify("dead").stdout == "There are no dead letters.\n"


def test_what_waits_is_listed() -> None:
    assert notify("outbox").stdout == "Nothing waits.\n"
    [waiting] = letters(1, dead=False)
    assert waiting in notify("outbox").stdout


def test_a_letter_that_is_not_there_is_an_error() -> None:
    result = notify("retry", "nothing")
    assert result.exit_code == 1
    assert "There is no dead letter 'nothing'." in result.stderr


@pytest.mark.parametrize("arguments", [[], ["one", "--all"]])
def test_what_to_send_again_has_to_be_said(arguments: list[str]) -> None:
    assert notify("retry", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "There are no targets."),
        ("[plugins.notify", "cannot be read"),
        ("[plugins.notify]\nsounds = true", "Unknown parameter: 'sounds'."),
        ("[plugins.notify.targets.ops]\ntype='webhook'\nurl='https://x'\nsecret='hunter2'", "jackfield notify secret"),
    ],
)
def test_a_wrong_file_is_an_error_that_shows_no_secret(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text(content)
    result = notify("test", "--config", str(file))
    assert result.exit_code == 1
    assert words in result.stderr
    assert "hunter2" not in result.output


def test_an_unknown_target_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    config = toml(tmp_path, {"ops": {"type": "webhook", "url": "https://localhost:9", "secret": SECRET}})
    result = notify("test", "--config", config, "--target", "nobody")
    assert result.exit_code == 1
    assert "Targets are: ops." in result.stderr


def test_a_secret_that_is_made_can_be_used() -> None:
    assert webhook.key(notify("secret").stdout.strip())


def test_help_has_examples() -> None:
    assert "jackfield notify test --config jackfield.toml" in notify("--help").stdout
    assert "--target" in notify("test", "--help").stdout
