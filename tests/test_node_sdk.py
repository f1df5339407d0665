"""The official Node SDK against the real starter model; needs ``node`` and ``npm``."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serving import Server

FOLDER = Path(__file__).parent / "node"
INSTALLED = FOLDER / "node_modules" / ".package-lock.json"
"""What npm writes last."""

missing = [program for program in ("node", "npm") if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def said(starter_server: Server) -> dict[str, Any]:
    """All that the script got."""
    install()
    printed = output("node", "chat.mjs", starter_server.api, starter_server.model)
    result: dict[str, Any] = json.loads(printed)
    return result


def install() -> None:
    """Fetch the SDK, unless what the lock file names is there already."""
    lock = FOLDER / "package-lock.json"
    if not INSTALLED.exists() or INSTALLED.stat().st_mtime < lock.stat().st_mtime:
        output("npm", "ci", "--no-audit", "--no-fund")


def output(*command: str) -> str:
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def text(choice: dict[str, Any]) -> str:
    content: str = choice["message"]["content"]
    return content


def test_it_knows_the_capital_of_france(said: dict[str, Any]) -> None:
    (choice,) = said["chat"]["choices"]
    assert "Paris" in text(choice)
    assert choice["finish_reason"] == "stop"


def test_a_stream_says_the_same_as_the_whole_answer(said: dict[str, Any]) -> None:
    *chunks, last = said["stream"]
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == text(said["chat"]["choices"][0])
    assert text(said["final"]["choices"][0]) == text(said["chat"]["choices"][0])
    assert last["choices"] == []
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][field] == said["chat"]["usage"][field]


def test_a_required_tool_is_called(said: dict[str, Any]) -> None:
    (choice,) = said["tool"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in {"Paris", "Rome"}


def test_a_text_is_completed(said: dict[str, Any]) -> None:
    assert said["completion"]["choices"][0]["text"] == " Paris"


def test_models_are_listed(said: dict[str, Any], starter_server: Server) -> None:
    assert [model["id"] for model in said["models"]] == [starter_server.model]
    assert said["model"] == said["models"][0]


def test_errors_are_the_sdks_own(said: dict[str, Any]) -> None:
    unknown, wrong = said["unknownModel"], said["wrongField"]
    assert (unknown["kind"], unknown["status"], unknown["code"]) == ("NotFoundError", 404, "model_not_found")
    assert (wrong["kind"], wrong["status"], wrong["param"]) == ("BadRequestError", 400, "temperature")
    assert wrong["code"] == "decimal_above_max_value"
