"""API keys: what each opens, for how long and how often; and nothing gets around them."""

import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from starlette.requests import HTTPConnection

from clock import Clock, clock_of
from contract import validator
from jackfield.cli.main import main
from jackfield.errors import ConfigurationError, RateLimitError
from jackfield.hooks import Identity, hookimpl
from jackfield.security import key_file, keyring, rate
from jackfield.security.exposure import check_exposure
from jackfield.security.key import Key
from jackfield.security.keyring import Keyring
from jackfield.security.rate import Allowance
from jackfield.testing import JackfieldServer, StartServer
from serving import Server, serve
from test_drain import until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


def command(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", "--file", str(file), *arguments])


def create(file: Path, name: str, *options: str) -> str:
    """The secret of a new key."""
    result = command(file, "create", name, *options)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def started(jackfield_server: StartServer, file: Path, *plugins: tuple[str, object]) -> JackfieldServer:
    return jackfield_server(*plugins, keys_file=file)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the file count at the next request, not within a second."""
    monkeypatch.setattr(keyring, "LOOK_SECONDS", -1.0)


# --- What they open --------------------------------------------------------------------------------------------------


def test_a_key_opens_only_what_it_is_for(jackfield_server: StartServer, file: Path) -> None:
    secrets = {
        "user": create(file, "user"),
        "watch": create(file, "watch", "--scope", "metrics"),
        "root": create(file, "root", "--scope", "admin"),
    }
    server = started(jackfield_server, file)
    paths = ("/v1/models", "/metrics", "/v1/plugins")
    opened = {name: [server.get(path, headers=bearer(key)).status for path in paths] for name, key in secrets.items()}
    assert opened == {"user": [200, 403, 403], "watch": [403, 200, 403], "root": [200, 200, 200]}
    assert server.get("/health").status == server.get("/ready").status == 200
    assert server.get("/v1/models", headers={"X-Api-Key": secrets["user"]}).status == 200


def test_nothing_else_opens(jackfield_server: StartServer, file: Path) -> None:
    secret = create(file, "ada")
    server = started(jackfield_server, file)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    wrong = ["", " ", secret[:-1], f"{secret}x", secret.upper(), digest, "none", "ada", "\xe9" * 40]
    headers = [{}, *map(bearer, wrong), {"Authorization": f"Basic {secret}"}, {"Authorization": secret}]
    assert [server.chat("Hi", headers=one).status for one in headers] == [401] * len(headers)
    assert server.get(f"/v1/models?api_key={secret}").status == 401
    for path in ("//v1/models", "/V1/models", "/v1/models/", "/v1/../health/../v1/models", "/nothing", "/v1/chat%2F"):
        assert server.get(path).status == 401, path
    reply = server.chat("Hi")
    validator("ErrorEnvelope").validate(reply.json)
    assert reply.headers["www-authenticate"] == "Bearer"
    assert server.requests == []


def test_all_keys_are_compared_each_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [create(file, name) for name in ("ada", "bob", "eve")]
    ring, compared = Keyring(file), []

    def compare(known: str, carried: str) -> bool:
        compared.append(known)
        return hmac.compare_digest(known, carried)

    monkeypatch.setattr(keyring, "hmac", SimpleNamespace(compare_digest=compare))
    for secret in (*secrets, "x"):
        headers = [(b"authorization", f"Bearer {secret}".encode())]
        ring.find(HTTPConnection({"type": "http", "headers": headers}))
    assert compared == [hashlib.sha256(secret.encode()).hexdigest() for secret in secrets] * 4


def test_requests_carry_name_and_priority(jackfield_server: StartServer, file: Path) -> None:
    secret = create(file, "nightly", "--priority", "background")
    server = started(jackfield_server, file)
    assert server.chat("Hi", headers=bearer(secret)).status == 200
    assert server.record("completed").request.identity == Identity("nightly", priority=60)
    assert server.requests[-1].priority == 60


class Door:
    """A plugin that knows one sender."""

    @hookimpl
    async def authenticate(self, request: Any) -> Identity | None:
        return Identity("guest") if request.headers.get("authorization") == "Bearer guest" else None


def test_keys_come_first_and_plugins_know_others(jackfield_server: StartServer, file: Path) -> None:
    secret = create(file, "ada")
    server = started(jackfield_server, file, ("door", Door()))
    assert [server.chat("Hi", headers=bearer(key)).status for key in (secret, "guest", "x")] == [200, 200, 401]
    server.wait_until(lambda: len([record for record in server.records if record.kind == "completed"]) == 2)
    known = [record.request.identity for record in server.records if record.kind == "completed"]
    assert known == [Identity("ada"), Identity("guest")]


def test_a_plugin_that_knows_nobody_opens_nothing(jackfield_server: StartServer, file: Path) -> None:
    create(file, "ada")
    failing = type("Failing", (), {"authenticate": hookimpl(lambda self: 1 / 0)})()
    server = jackfield_server(("failing", failing), keys_file=file, may_fail=True)
    assert server.chat("Hi", headers=bearer("x")).status == 503


# --- For how long ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_keys_come_and_go_while_the_server_runs(jackfield_server: StartServer, file: Path) -> None:
    server = started(jackfield_server, file)
    assert server.chat("Hi").status == 200, "no file of keys, so nobody needs one"
    ada, bob = create(file, "ada"), create(file, "bob")
    assert [server.chat("Hi", headers=bearer(key)).status for key in ("", ada, bob)] == [401, 200, 200]
    assert command(file, "revoke", "bob").exit_code == 0
    assert [server.chat("Hi", headers=bearer(key)).status for key in (ada, bob)] == [200, 401]
    assert command(file, "revoke", "ada").exit_code == 0
    assert server.chat("Hi").status == 401, "the last one gone opens nothing"
    file.unlink()
    assert server.chat("Hi").status == 401, "nor does the file"


@pytest.mark.usefixtures("at_once")
def test_a_file_that_gets_damaged_changes_nothing(
    jackfield_server: StartServer, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = create(file, "ada")
    server = started(jackfield_server, file)
    for damage in ("", "{", '{"keys": [{"name": "eve"}]}', '{"version": 2}'):
        file.write_text(damage)
        assert [server.chat("Hi", headers=bearer(key)).status for key in (secret, "x")] == [200, 401]
    assert "stay as they were" in caplog.text
    with pytest.raises(ConfigurationError, match="is damaged"):
        Keyring(file)


def test_a_key_expires(jackfield_server: StartServer, file: Path) -> None:
    secret = create(file, "ada", "--expires", "1h")
    past = datetime.now(UTC) - timedelta(seconds=1)
    good = started(jackfield_server, file)
    assert good.chat("Hi", headers=bearer(secret)).status == 200
    key_file.change(file, lambda keys: [key.model_copy(update={"expires": past}) for key in keys])
    reply = started(jackfield_server, file).chat("Hi", headers=bearer(secret))
    assert (reply.status, reply.json["error"]["code"]) == (401, "expired_api_key")


# --- How often -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return clock_of(monkeypatch, rate)


def key(name: str = "ada", **fields: Any) -> Key:
    return Key(name=name, sha256="0" * 64, **fields)


def test_a_key_asks_so_often_a_minute(jackfield_server: StartServer, file: Path) -> None:
    ada, bob = create(file, "ada", "--rpm", "2"), create(file, "bob")
    server = started(jackfield_server, file)
    replies = [server.chat("Hi", headers=bearer(ada)) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0", "0"]
    validator("ErrorEnvelope").validate(replies[2].json)
    assert replies[2].json["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    assert server.get("/v1/models", headers=bearer(ada)).status == 429
    assert server.chat("Hi", headers=bearer(bob)).status == 200, "nobody else is kept waiting"
    assert "x-ratelimit-limit-requests" not in server.chat("Hi", headers=bearer(bob)).headers


def test_tokens_count_once_they_are_known(jackfield_server: StartServer, file: Path) -> None:
    secret = create(file, "ada", "--tpm", "100000")
    server = started(jackfield_server, file)

    def left() -> int:
        return int(server.get("/v1/models", headers=bearer(secret)).headers["x-ratelimit-remaining-tokens"])

    # What comes back meanwhile is 1667 a second; take more than that, in prompts.
    before = left()
    for fields in ({}, {"stream": True}):
        reply = server.chat("Hi " * 1200, headers=bearer(secret), **fields)
        assert reply.status == 200
        after = left()
        assert before - after > 1000
        before = after


def test_what_was_taken_too_much_has_to_come_back(clock: Clock) -> None:
    allowance = Allowance(key(tokens_per_minute=60))
    allowance.take_request()
    allowance.take_tokens(150)
    with pytest.raises(RateLimitError) as caught:
        allowance.take_request()
    assert caught.value.retry_after == 91
    clock.ahead += 90
    with pytest.raises(RateLimitError):
        allowance.take_request()
    clock.ahead += 1
    allowance.take_request()


def test_a_minute_of_silence_gives_a_minutes_requests_and_no_more(clock: Clock) -> None:
    allowance = Allowance(key(requests_per_minute=3))
    clock.ahead += 3600
    for _ in range(3):
        allowance.take_request()
    with pytest.raises(RateLimitError) as caught:
        allowance.take_request()
    assert caught.value.retry_after == 20
    clock.ahead += 20
    allowance.take_request()


def test_reading_the_keys_again_does_not_fill_what_is_empty(file: Path) -> None:
    create(file, "ada", "--rpm", "1")
    ring = Keyring(file)
    (ada,) = key_file.read(file) or ()
    ring.allowance(ada).take_request()
    create(file, "bob")
    ring.reload()
    with pytest.raises(RateLimitError):
        ring.allowance(ada).take_request()


# --- Where they are kept ---------------------------------------------------------------------------------------------


def test_keys_are_kept_as_hashes_for_the_user_alone(file: Path) -> None:
    old = os.umask(0)
    try:
        secret = create(file, "ada")
    finally:
        os.umask(old)
    assert len(secret) == len("jackfield_") + 43
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    text = file.read_text()
    assert secret not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    assert create(file, "bob") != secret


def test_keys_are_written_nowhere(jackfield_server: StartServer, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = create(file, "ada")
    server = started(jackfield_server, file)
    server.chat("Hi", headers=bearer(secret))
    server.chat("Hi", headers=bearer(f"{secret}x"))
    server.record("failed")
    server.record("completed")
    assert secret not in caplog.text + repr(server.records) + repr(server.events)
    assert secret not in command(file, "list", "--json").output + command(file, "list").output


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o666])
def test_a_file_that_others_may_read_or_change_is_refused(file: Path, mode: int) -> None:
    create(file, "ada")
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"others.*{mode:o}") as caught:
        Keyring(file)
    assert caught.value.suggestions == (f"chmod 600 {file}",)


TWICE = json.dumps({"keys": [{"name": "a", "sha256": "0" * 64}] * 2})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ('{"keys": [{"name": "a b", "sha256": "%s"}]}' % ("0" * 64), "keys.0.name"),
        ('{"keys": [{"name": "a\\nb", "sha256": "%s"}]}' % ("0" * 64), "keys.0.name"),
        ('{"keys": [{"name": "a", "sha256": "secret-secret"}]}', "keys.0.sha256"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scopes": []}]}' % ("0" * 64), "keys.0.scopes"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scope": "x"}]}' % ("0" * 64), "keys.0.scope"),
        (TWICE, "two keys called 'a'"),
        ("[]", "the whole file"),
    ],
)
def test_what_is_damaged_is_named_and_not_quoted(file: Path, damage: str, told: str) -> None:
    create(file, "ada")
    file.write_text(damage)
    with pytest.raises(ConfigurationError, match=told) as caught:
        Keyring(file)
    assert "secret-secret" not in caught.value.message


def test_nobody_sees_half_a_file(file: Path) -> None:
    create(file, "ada")
    threads = [threading.Thread(target=create, args=(file, f"key{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert key_file.read(file), "read while it is written"
    assert len(key_file.read(file) or ()) == 9, "and nobody's change is lost"
    assert sorted(path.name for path in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


# --- The environment -------------------------------------------------------------------------------------------------


ENVIRONMENT = {
    "JACKFIELD_API_KEY": "a-key-for-everything",
    "JACKFIELD_API_KEYS": "ada=secret-of-ada-1234, watch/metrics=secret-of-watch-1,ops/admin+metrics=secret-of-ops-12",
}


def test_keys_in_the_environment() -> None:
    assert Keyring(environment=ENVIRONMENT).asks
    known = {one.name: one.scopes for one in keyring.from_environment(ENVIRONMENT)}
    assert known == {
        "ada": {"inference"},
        "watch": {"metrics"},
        "ops": {"admin", "metrics"},
        "environment": {"inference", "admin", "metrics"},
    }


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("JACKFIELD_API_KEY", "short", "too short"),
        ("JACKFIELD_API_KEYS", "secret-without-a-name", "not NAME=KEY"),
        ("JACKFIELD_API_KEYS", "ada/root=secret-of-ada-1234", "unknown scope 'root'"),
        ("JACKFIELD_API_KEYS", "ada=secret-of-ada-1234,ada=secret-of-ada-1234", "'ada' is in"),
        ("JACKFIELD_API_KEYS", "a b=secret-of-ada-1234", "not NAME=KEY"),
    ],
)
def test_a_wrong_key_in_the_environment_is_refused_without_quoting_it(variable: str, value: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        Keyring(environment={variable: value})
    assert "secret" not in caught.value.message


# --- The command -----------------------------------------------------------------------------------------------------


def test_keys_are_listed_without_themselves(file: Path) -> None:
    assert "nobody needs one" in command(file, "list").output
    create(file, "ada", "--rpm", "60", "--tpm", "1000", "--expires", "2999-12-31")
    listed = command(file, "list").output
    for told in ("ada", "inference", "60", "1000", "3000-01-01"):
        assert told in listed
    (told,) = json.loads(command(file, "list", "--json").output)
    assert told.pop("created")
    assert told == {
        "name": "ada",
        "scopes": ["inference"],
        "priority": "normal",
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "expires": "3000-01-01T00:00:00Z",
        "expired": False,
    }
    command(file, "revoke", "ada")
    assert "nobody gets in" in command(file, "list").output


def test_a_new_key_for_programs(file: Path) -> None:
    told = json.loads(command(file, "create", "ada", "--json").stdout)
    assert told["key"].startswith("jackfield_")
    assert told["name"] == "ada"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "ada"], "already"),
        (["create", "a b"], "no name for a key"),
        (["create", "../ada"], "no name for a key"),
        (["create", "bob", "--expires", "soon"], "neither like 30d"),
        (["create", "bob", "--expires", "2001-01-01"], "is over"),
        (["create", "bob", "--expires", "9999-12-31"], "the last day there is"),
        (["create", "bob", "--scope", "root"], "'root'"),
        (["revoke", "adda"], "Did you mean 'ada'?"),
    ],
)
def test_mistakes_are_told(file: Path, arguments: Sequence[str], told: str) -> None:
    create(file, "ada")
    result = command(file, *arguments)
    assert result.exit_code != 0
    assert told in result.output


# --- Beyond this machine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "own"), [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_others_need_a_key_or_a_word(address: str, own: bool, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as listener:
        listener.bind((address, 0))
        check_exposure(listener, asks=True, open_to_network=False)
        check_exposure(listener, asks=False, open_to_network=True)
        assert ("Everybody" in caplog.text) is not own
        if own:
            check_exposure(listener, asks=False, open_to_network=False)
            return
        with pytest.raises(ConfigurationError, match="everybody") as caught:
            check_exposure(listener, asks=False, open_to_network=False)
    assert [hint for hint in caught.value.suggestions if "--open-to-network" in hint]


def test_the_command_asks_for_keys(tiny_model: Path) -> None:
    refused = CliRunner().invoke(main, ["serve", "--model", str(tiny_model), "--host", "0.0.0.0", "--port", "0"])
    assert refused.exit_code == 1
    assert "it asks for no key" in refused.output


def test_a_server_for_others(tiny_model: Path, file: Path) -> None:
    """Keys open it, and a signal has them read again."""
    secret = create(file, "ada")
    with serve(tiny_model, "--host", "0.0.0.0", JACKFIELD_KEYS_FILE=str(file)) as server:
        assert status(server, secret) == 200
        assert status(server, "x") == 401
        whole = file.read_text()
        file.write_text(whole[: len(whole) // 2])
        server.process.send_signal(signal.SIGHUP)
        until(lambda: any("Something stays as it was" in line for line in server.log))
        assert status(server, secret) == 200
        file.write_text(whole)
        command(file, "revoke", "ada")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: status(server, secret) == 401)
    assert secret not in "".join(server.log)


def status(server: Server, secret: str) -> int:
    return httpx2.get(f"{server.api}/models", headers=bearer(secret), timeout=60).status_code
