"""Errors name whoever could answer instead: another model, or another server."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jackfield.errors import EngineError, JackfieldError, MemoryPressureError, QueueFullError, ShuttingDownError
from jackfield.events import EventBus
from jackfield.models.lineup import Lineup
from jackfield.models.profile import Profile
from jackfield.models.registry import Entry, Registry, ServedModel
from jackfield.models.service import model_id
from jackfield.settings import load
from jackfield.testing import JackfieldServer, serving
from jackfield.testing import server as testing_server

TOO_LONG = "x" * 5000
"""Tokens, of 4096."""


def registry(models: list[ServedModel | Entry]) -> Registry:
    """More models: three that are in memory, and one that is not."""
    scripted, *others = models
    assert isinstance(scripted, ServedModel)
    profile = Profile(6000, ("completions", "chat"))
    more = [
        replace(scripted, id="longest", context_length=100_000),
        replace(scripted, id="long", context_length=8000),
        Entry("vectors", profile=Profile(50_000, ("embeddings",))),
        Entry("asleep", profile=profile, aliases=("sleepy",)),
    ]
    return Registry([scripted, *more, *others])


@pytest.fixture(scope="module")
def server(jackfield_tokenizer: Path) -> Iterator[JackfieldServer]:
    upstreams = {name: {"url": "http://127.0.0.1:1/v1", "max_failures": 1} for name in ("office", "down")}
    models = {
        "far": {"route": [{"backend": "office", "context_length": 7000}]},
        "broken": {"route": ["down"]},
        "routed": {"route": ["office"]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing_server, "Registry", registry)
        with serving(jackfield_tokenizer, upstreams=upstreams, models=models) as started:
            assert started.chat("Hi", model="broken").status == 502
            yield started


def suggestions(server: JackfieldServer, error: JackfieldError, **fields: Any) -> list[str]:
    server.says("", error=error)
    reply = server.chat("Hi", **fields)
    assert reply.status == error.status
    found: list[str] = reply.json["error"]["suggestions"]
    assert list(server.record("failed", reply.request_id).data["suggestions"]) == found
    return found


def test_a_prompt_that_is_too_long_is_sent_where_it_fits(server: JackfieldServer) -> None:
    reply = server.chat(TOO_LONG)
    assert reply.json["error"]["code"] == "context_length_exceeded"
    told = reply.json["error"]["suggestions"]
    assert told[0].startswith("Shorten")
    assert told[-2:] == ["Ask 'asleep', which reads 6000 tokens.", "Ask 'far', which reads 7000 tokens."]


def test_only_who_has_room_for_it_is_named(server: JackfieldServer) -> None:
    told = server.post("/v1/completions", {"model": "scripted", "prompt": "x" * 7500}).json["error"]["suggestions"]
    # What is much too long is not counted to its end.
    assert [one for one in told if one.startswith("Ask")][-1] == "Ask 'longest', which reads 100000 tokens."
    told = server.post("/v1/embeddings", {"model": "scripted", "input": TOO_LONG}).json["error"]["suggestions"]
    named = [one for one in told if one.startswith("Ask")]
    assert named == ["Ask 'long', which reads 8000 tokens.", "Ask 'vectors', which reads 50000 tokens."]


@pytest.mark.parametrize("error", [QueueFullError(9), MemoryPressureError(), EngineError("It broke.")], ids=str)
def test_who_is_busy_names_who_is_not(server: JackfieldServer, error: JackfieldError) -> None:
    told = suggestions(server, error)
    assert "Ask 'longest', which is in memory and has no queue." in told
    assert "Ask 'long', which is in memory and has no queue." in told
    assert told[-1] == 'Let office answer when this model cannot: route = ["mlx", "office"] in [models.scripted].'


def test_an_error_that_ends_many_names_them_once(server: JackfieldServer) -> None:
    error = EngineError("It broke.")
    assert suggestions(server, error) == suggestions(server, error)


def test_other_servers_are_named_while_they_are_well(server: JackfieldServer) -> None:
    server.engine.statistics.waiting = 5
    told = suggestions(server, QueueFullError(9))
    server.engine.statistics.waiting = 0
    named = [one for one in told if one.startswith("Ask")]
    assert named == ["Ask 'far', which office answers.", "Ask 'routed', which office answers."]


def test_nobody_is_named_where_nobody_would_do_better(server: JackfieldServer) -> None:
    told = suggestions(server, ShuttingDownError())
    assert not [one for one in told if one.startswith(("Ask", "Let"))]
    told = server.chat("Hi", temperature=9).json["error"]["suggestions"]
    assert not [one for one in told if one.startswith(("Ask", "Let"))]


def test_a_stream_is_told_too(server: JackfieldServer) -> None:
    server.says("", error=QueueFullError(9))
    reply = server.chat("Hi", stream=True)
    error = next(one["error"] for one in reply.chunks if "error" in one)
    assert "Ask 'longest', which is in memory and has no queue." in error["suggestions"]


OFFICE = {"office": {"url": "http://127.0.0.1:1/v1"}}


def route_suggested(tokenizer: Path, **settings: Any) -> str | None:
    """What whoever runs a server with these settings is told when its model is busy."""
    name = model_id(settings["model"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing_server, "Registry", lambda models: Registry([replace(models[0], id=name)]))
        with serving(tokenizer, upstreams=OFFICE, **settings) as started:
            told = suggestions(started, QueueFullError(9), model=name)
    return next((one for one in told if one.startswith("Let")), None)


@pytest.mark.parametrize("model", ["starter", "org/name", "Qwen2.5-Coder", "org/name:Q4_K_M", "folder"])
def test_the_route_that_is_suggested_works_word_for_word(jackfield_tokenizer: Path, tmp_path: Path, model: str) -> None:
    if model == "folder":
        model = str(tmp_path / 'a "tiny" 😀 folder')
        Path(model).mkdir()
    name = model_id(model)
    told = route_suggested(jackfield_tokenizer, model=model)
    assert told is not None
    written = re.fullmatch(
        r"Let office answer when this model cannot: (?:(aliases = .*) and )?(route = .*) in (.*)\.", told
    )
    assert written, told
    aliases, route, table = written.groups(default="")
    file = tmp_path / "jackfield.toml"
    file.write_text(f"{table}\n{aliases}\n{route}\n", "utf-8")

    followed = load({"model": model, "upstreams": OFFICE}, file, environment={})
    registry = Lineup(followed, lambda name, progress: tmp_path, EventBus(), tell=print).registry
    (entry,) = registry.entries
    assert registry.meant(name).entry is entry, "clients call it what they called it"
    assert followed.of_model(entry.id).model == model
    steps = followed.models[entry.id].route
    assert [(step.backend, step.model or entry.id) for step in steps][1:] == [("office", name)]
    assert steps[0].backend == "mlx"


def test_no_table_is_suggested_that_would_take_away_a_models_adapters(jackfield_tokenizer: Path) -> None:
    adapters = {"tuned": "org/adapter"}
    assert route_suggested(jackfield_tokenizer, model="org/name", adapters=adapters) is None
    tables = {"org/name": {"adapters": adapters}}
    assert route_suggested(jackfield_tokenizer, model="org/name", models=tables) is not None
