"""Files that are not what they were: a configuration is refused in a line, a database never costs anybody an answer."""

import asyncio
import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from jackfield import settings
from jackfield.errors import ConfigurationError, UnavailableError
from jackfield.response_store import FILE, MissingResponseError, ResponseStore, StoredResponse

CONFIGURATION = b'# sound\nport = 8080\nmodel = "starter"\n\n[plugins.logging]\nfile = "a.log"\n'
DAMAGED = {
    "cut off": CONFIGURATION[:-3],
    "zeros": bytes(len(CONFIGURATION)),
    "not UTF-8": CONFIGURATION.replace(b"sound", b"\xff\xfe"),
    "UTF-16": CONFIGURATION.decode().encode("utf-16"),
    "another file": b"\x7fELF" + bytes(range(256)),
    "twice": CONFIGURATION + CONFIGURATION,
    "another type": CONFIGURATION.replace(b"8080", b"[1, 2]"),
    "a setting as a table": b"[port]\na = 1\n",
    "plugins as a number": b"plugins = 5\n",
    "a plugin as a number": b"[plugins]\nlogging = 5\n",
    "NUL": CONFIGURATION.replace(b"starter", b"a\0b"),
    "depth": b"port = " + b"[" * 100_000,
    "digits": b"port = " + b"9" * 100_000,
    "a date": b"port = 1979-05-27\n",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_configuration_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_bytes(DAMAGED[damage])
    with pytest.raises(ConfigurationError) as caught:
        settings.load({}, file, {})
    assert str(file) in caught.value.message
    assert len(caught.value.message) < 1000
    assert caught.value.suggestions


def test_a_server_with_a_damaged_configuration_says_so_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "jackfield.toml"
    for what in (DAMAGED["not UTF-8"], None):
        file.unlink(missing_ok=True)
        file.mkdir() if what is None else file.write_bytes(what)
        command = [sys.executable, "-m", "jackfield", "serve"]
        environment = {"JACKFIELD_CONFIG": str(file), "PATH": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(f"jackfield: The configuration file {file} cannot be read")
        assert "Traceback" not in done.stderr


def test_any_damage_to_stored_responses_is_survived(tmp_path: Path) -> None:
    """What can still be read is right or is not there; and something new can always be kept."""
    store = ResponseStore(tmp_path, max_bytes=1 << 20, max_days=30)
    asyncio.run(fill(store))
    sound = (tmp_path / FILE).read_bytes()
    chance = random.Random(9)
    for _ in range(20):
        (tmp_path / FILE).write_bytes(damaged(sound, chance))
        asyncio.run(use(store))
        for aside in tmp_path.glob("*.damaged-*"):
            aside.unlink()


def damaged(sound: bytes, chance: random.Random) -> bytes:
    content = bytearray(sound)
    for _ in range(chance.choice([1, 5, 100])):
        at = chance.randrange(len(content))
        piece = chance.randbytes(chance.choice([1, 1, 16, 600]))
        content[at : at + len(piece)] = piece
    return bytes(content[: chance.choice([len(content), len(content), chance.randrange(len(content))])])


async def fill(store: ResponseStore) -> None:
    for number in range(20):
        name, previous = f"resp_{number}", f"resp_{number - 1}" if number else None
        given, made = [{"id": f"in_{number}", "text": "x" * 300}], [{"id": f"out_{number}"}]
        assert await store.put(StoredResponse(name, "", previous, json.dumps({"id": name}), given, made))


async def use(store: ResponseStore) -> None:
    for number in range(20):
        name = f"resp_{number}"
        with suppress(UnavailableError):
            body = await store.get("", name)
            assert body is None or isinstance(json.loads(body), dict)
        with suppress(UnavailableError, MissingResponseError):
            assert all(isinstance(item, dict) for item in await store.conversation("", name))
    with suppress(UnavailableError):
        await store.items("", ["in_1", "out_2"])
    new = StoredResponse("resp_new", "", None, "{}", [], [])
    await store.delete("", "resp_new")
    assert await store.put(new)
    assert await store.get("", "resp_new") == "{}"
