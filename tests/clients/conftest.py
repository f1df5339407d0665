"""Real clients, set up as docs/clients.md says.

Those that come with the ``test`` extra run with all other tests. The others take minutes to install, and run in
`make test-clients`, which says in CLIENTS_DIR where it has put them.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from desk import Desk

from jackfield.testing import JackfieldServer, StartServer, serving
from model_fixtures import TOKENIZER_FILES, random_weights, write_model
from serving import Server, serve

LIGHT = {"test_anthropic_python.py", "test_guide.py", "test_llm.py", "test_openai_python.py", "test_pydantic_ai.py"}
CONTEXT_LENGTH = 131_072
"""Room for what assistants send, at a token for each byte."""

if "CLIENTS_DIR" not in os.environ:
    collect_ignore = [file.name for file in Path(__file__).parent.glob("test_*.py") if file.name not in LIGHT]


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    """One that says what a test wants to hear, behind everything else that a server has."""
    return jackfield_server(context_length=CONTEXT_LENGTH)


@pytest.fixture
def desk(server: JackfieldServer, tmp_path: Path) -> Iterator[Desk]:
    """A desk at that server; whatever was asked there has to end well."""
    yield from desk_beside(server, tmp_path)


@pytest.fixture(params=[16_000])
def small_desk(jackfield_server: StartServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """A desk at a server that has no room for what assistants send; a test may say how much room there is."""
    with access_log() as lines:
        yield Desk(tmp_path / "desk", jackfield_server(context_length=request.param).url, lines)


@pytest.fixture
def thinking_server(jackfield_tokenizer: Path, tmp_path: Path) -> Iterator[JackfieldServer]:
    """The same for a model that is made for thinking, and is shown what it thought."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(jackfield_tokenizer, folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    shown = "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    template = settings["chat_template"].replace("{{ message.content }}", shown + "{{ message.content }}")
    file.write_text(json.dumps(settings | {"chat_template": template}))
    with serving(folder, context_length=CONTEXT_LENGTH) as server:
        yield server


@pytest.fixture
def thinking_desk(thinking_server: JackfieldServer, tmp_path: Path) -> Iterator[Desk]:
    """A desk at that server; whatever was asked there has to end well."""
    yield from desk_beside(thinking_server, tmp_path)


@pytest.fixture(scope="session")
def talking_server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real starter model, which says the most likely thing unless it is asked for another, and so is brief."""
    folder = tmp_path_factory.mktemp("talking") / "starter"
    folder.mkdir()
    for file in starter.iterdir():
        (folder / file.name).symlink_to(file)
    advise(folder, temperature=0)
    with serve(folder, "--log-level", "debug") as server:
        yield server


@pytest.fixture
def talking_desk(talking_server: Server, tmp_path: Path) -> Desk:
    """A desk at the starter."""
    return desk_at(talking_server, tmp_path)


@pytest.fixture(scope="session")
def babbling_server(tiny_model: Path, starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A random model with a long context: garbage for everybody, of some hundred tokens, since many of them end it."""
    folder = tmp_path_factory.mktemp("babbling")
    for name in TOKENIZER_FILES:
        shutil.copy(tiny_model / name, folder)
    config = json.loads((tiny_model / "config.json").read_text()) | {"max_position_embeddings": 32_768}
    write_model(folder, config, random_weights(config))
    advise(folder, eos_token_id=list(range(200)))
    with serve(folder, "--log-level", "debug") as server:
        yield server


@pytest.fixture
def babbling_desk(babbling_server: Server, tmp_path: Path) -> Desk:
    """A desk at the random model."""
    return desk_at(babbling_server, tmp_path)


def advise(folder: Path, **settings: Any) -> None:
    """What a model's own defaults are."""
    file = folder / "generation_config.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(old | settings))


def desk_beside(server: JackfieldServer, folder: Path) -> Iterator[Desk]:
    with access_log() as lines:
        yield Desk(folder / "desk", server.url, lines)
    assert not [record for record in server.records if record.kind in ("failed", "cancelled")]


def desk_at(server: Server, folder: Path) -> Desk:
    return Desk(folder / "desk", server.url, server.log)


@contextmanager
def access_log() -> Iterator[list[str]]:
    """What uvicorn says of requests in this process. (caplog forgets between a test's set-up and the test.)"""
    lines: list[str] = []
    logger, handler = logging.getLogger("uvicorn.access"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
