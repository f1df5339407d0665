"""Who gets in, and how they stand."""

import hashlib
from typing import Any

import click
import pytest
from click.testing import CliRunner

from jackfield.testing import JackfieldServer, StartServer
from jackfield_authenticator import Plugin


def key(name: str, secret: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **fields}


KEYS = [
    key("ada", "secret-of-ada", priority="interactive"),
    key("nightly", "secret-of-nightly", priority="background"),
    key("prometheus", "secret-of-prometheus", scopes=["metrics"]),
]


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server("authenticator", settings={"authenticator": {"keys": KEYS}})


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_key_opens(server: JackfieldServer) -> None:
    assert server.chat("Hi", headers=bearer("secret-of-ada")).status == 200
    assert server.chat("Hi", headers={"X-Api-Key": "secret-of-ada"}).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("secret-of-ad"), bearer(""), {"Authorization": "Basic secret-of-ada"}, bearer(KEYS[0]["sha256"])],
)
def test_nothing_else_does(server: JackfieldServer, headers: dict[str, str]) -> None:
    reply = server.chat("Hi", headers=headers)
    assert reply.status == 401
    assert "error" in reply.json


def test_without_keys_nobody_gets_in(jackfield_server: StartServer) -> None:
    assert jackfield_server("authenticator").chat("Hi", headers=bearer("")).status == 401


def test_no_key_is_no_key_even_if_its_hash_is_there(jackfield_server: StartServer) -> None:
    server = jackfield_server("authenticator", settings={"authenticator": {"keys": [key("nobody", "")]}})
    assert server.chat("Hi").status == 401


def test_a_key_opens_only_what_it_is_for(server: JackfieldServer) -> None:
    prometheus, ada = bearer("secret-of-prometheus"), bearer("secret-of-ada")
    assert server.get("/metrics", headers=prometheus).status == 200
    assert server.chat("Hi", headers=prometheus).status == 403
    assert server.get("/metrics", headers=ada).status == 403


@pytest.mark.parametrize(("secret", "name", "priority"), [("ada", "ada", -10), ("nightly", "nightly", 60)])
def test_requests_carry_name_and_priority(server: JackfieldServer, secret: str, name: str, priority: int) -> None:
    server.chat("Hi", headers=bearer(f"secret-of-{secret}"))
    identity = server.record("completed").request.identity
    assert identity is not None
    assert (identity.name, identity.priority) == (name, priority)
    assert server.requests[-1].priority == priority


def test_keys_are_written_nowhere(server: JackfieldServer, caplog: pytest.LogCaptureFixture) -> None:
    server.chat("Hi", headers=bearer("secret-of-ada"))
    server.record("completed")
    assert "secret-of-ada" not in caplog.text + repr(server.records) + repr(server.events)


def test_a_wrong_hash_is_refused(jackfield_server: StartServer) -> None:
    with pytest.raises(Exception, match="sha256"):
        jackfield_server("authenticator", settings={"authenticator": {"keys": [{"name": "ada", "sha256": "secret"}]}})


def test_a_new_key_fits_its_section(jackfield_server: StartServer) -> None:
    cli = click.Group()
    Plugin().register_commands(cli)
    output = CliRunner().invoke(cli, ["new-key", "ada"]).output
    (made,) = [line.strip() for line in output.splitlines() if line.strip().startswith("jack_")]
    assert f'sha256 = "{hashlib.sha256(made.encode()).hexdigest()}"' in output
    assert made not in CliRunner().invoke(cli, ["new-key", "ada"]).output
