"""For tests of plugins: a pytest plugin with the real server over an engine that says what it is told to.

pytest finds it by itself where Jackfield is installed. ``jackfield_server`` starts servers, which end with the test::

    def test_answers_are_counted(jackfield_server):
        server = jackfield_server("my-plugin", settings={"my-plugin": {"colour": "red"}})
        server.says("Good morning.")
        assert server.chat("Hi").content == "Good morning."
        assert server.record("completed").data["completion_tokens"] == len("Good morning.")

Nothing is downloaded, and no model is loaded: the scripted engine's tokens are bytes.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jackfield.testing.engine import Script, ScriptedEngine
    from jackfield.testing.reply import Reply
    from jackfield.testing.server import JackfieldServer, StartServer, serving

_HOMES = {
    "JackfieldServer": "server",
    "Reply": "reply",
    "Script": "engine",
    "ScriptedEngine": "engine",
    "StartServer": "server",
    "serving": "server",
}

__all__ = ["JackfieldServer", "Reply", "Script", "ScriptedEngine", "StartServer", "jackfield_server", "serving"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: this module is loaded by every run of pytest, before coverage is measured.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import(_HOMES[name]), name)


def _import(module: str) -> Any:
    device = import_module("jackfield.models.device")
    # In this order, and before anything else imports MLX, as the server does it.
    device.load_blas()
    device.import_mlx_lm()
    return import_module(f"{__name__}.{module}")


@pytest.fixture(scope="session")
def jackfield_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scripted engine's tokenizer: a token for every byte, and a chat template."""
    folder = tmp_path_factory.mktemp("jackfield-tokenizer")
    _import("tokenizer").write(folder)
    return folder


@pytest.fixture
def jackfield_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jackfield_tokenizer: Path
) -> "Iterator[StartServer]":
    """Starts servers; see `StartServer`. Plugins keep their data in a folder of the test's own."""
    monkeypatch.setenv("JACKFIELD_DATA_DIR", str(tmp_path / "jackfield-data"))
    start = partial(_import("server").serving, jackfield_tokenizer)
    with ExitStack() as running:
        yield lambda *plugins, **settings: running.enter_context(start(*plugins, **settings))
