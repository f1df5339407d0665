"""The README tells every setting with its default, and every key of what programs get."""

import re
from pathlib import Path

from jackfield.testing import StartServer
from jackfield_dashboard.settings import Settings

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_all_settings_are_told_with_their_defaults() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| `(\d+)` \|", README, re.MULTILINE))
    assert told == {name: str(field.default) for name, field in Settings.model_fields.items()}


def test_all_keys_are_told(jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard")
    server.chat("Hi")
    server.wait_until(lambda: server.get("/dashboard/state").json["requests"])
    state = server.get("/dashboard/state").json
    told = set(re.findall(r"`(\w+)`", README[README.index("## For programs") :]))
    assert told >= {
        *state,
        *state["history"][0],
        *state["requests"][0],
        *state["latency"],
        *state["latency"]["first_token"],
    }
