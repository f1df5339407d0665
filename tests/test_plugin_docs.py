"""docs/plugins.md has every hook as it is, and examples that work."""

import ast
import inspect
import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_args

import pluggy
import pytest

from jackfield import events, hooks, settings
from jackfield.hooks import specs
from jackfield.hooks.data import RecordKind
from jackfield.hooks.specs import PROJECT, Sockets
from jackfield.testing import JackfieldServer, Reply, StartServer

DOCUMENT = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^#### `(\w+)`\n(.*?)(?=^#{2,4} |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE))
"""Each hook's own, by its name."""


def blocks(language: str, text: str = DOCUMENT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)[1]


def declared() -> dict[str, str]:
    """The signatures of all hooks as they stand in the code, without self."""
    (sockets,) = (
        node
        for node in ast.parse(inspect.getsource(specs)).body
        if isinstance(node, ast.ClassDef) and node.name == Sockets.__name__
    )
    return {node.name: signature(node) for node in sockets.body if isinstance(node, ast.FunctionDef)}


def signature(function: ast.FunctionDef) -> str:
    function.args.args = [argument for argument in function.args.args if argument.arg != "self"]
    # Names that are imported for the type checker alone are in quotes.
    return f"{function.name}({ast.unparse(function.args)}) -> {ast.unparse(function.returns)}".replace("'", "")


def module(code: str) -> ModuleType:
    made = ModuleType("example")
    exec(compile(code, "docs/plugins.md", "exec"), vars(made))
    return made


def test_every_hook_is_there_and_no_other() -> None:
    known = declared()
    assert len(known) > 20
    assert SECTIONS.keys() == known.keys()


@pytest.mark.parametrize("hook", declared())
def test_its_signature_is_the_real_one(hook: str) -> None:
    first = blocks("python", SECTIONS[hook])[0]
    (function,) = ast.parse(first).body
    assert signature(function) == declared()[hook]


@pytest.mark.parametrize("hook", declared())
def test_it_is_said_when_a_hook_may_be_async(hook: str) -> None:
    told = "may be async" in inspect.getdoc(getattr(Sockets, hook)).lower()
    group = DOCUMENT[: DOCUMENT.index(f"#### `{hook}`")].rpartition("\n### ")[2].partition("\n#### ")[0]
    documented = "may be async" in SECTIONS[hook].lower() or "may be async" in group.lower()
    assert documented == (told or group.startswith("Once a request"))


@pytest.mark.parametrize("hook", declared())
def test_its_example_plugs_in(hook: str) -> None:
    (example,) = blocks("python", SECTIONS[hook])[1:]
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Sockets)
    manager.register(module(example), "my-plugin")
    manager.check_pending()
    assert getattr(manager.hook, hook).get_hookimpls()


@pytest.mark.parametrize("hook", declared())
def test_its_example_works_in_a_server(
    hook: str, jackfield_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PLUGIN_KEY", "secret")
    example = module(blocks("python", SECTIONS[hook])[1])
    # Of a server that ends the test fails when a plugin has failed.
    server = jackfield_server(("my-plugin", example), context_budget=64)
    headers = {"Authorization": "Bearer secret"}
    long = [{"role": "user", "content": "Tell me more. " * 4}] * 4
    for messages, stream in (("Hi", False), ("Hi", True), (long, False)):
        fields = {"jackfield": {"my-plugin": {}}, "stream": stream, "temperature": 0}
        assert server.chat(messages, headers=headers, **fields).status == 200
    assert server.get("/metrics", headers=headers).status == 200
    server.record("completed")


def test_the_examples_of_backends_work_together(jackfield_server: StartServer) -> None:
    backend, choice = (
        module(blocks("python", SECTIONS[f"{hook}"])[1]) for hook in ("register_backends", "select_backend")
    )
    server = jackfield_server(("echoing", backend), ("my-plugin", choice))
    for options, content in (({"echo": True}, "Say it again "), ({}, "No echo.")):
        server.says("No echo.")
        reply = server.chat("Say it again", jackfield={"my-plugin": options})
        assert reply.content == content
        server.engine.scripts.clear()


def test_the_example_of_a_tool_parser_finds_calls(jackfield_server: StartServer) -> None:
    parser = module(blocks("python", SECTIONS["register_tool_parsers"])[1])
    server = jackfield_server(("my-plugin", parser), tool_parser="one-call")
    tools = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]
    for said, calls in (("CALL get_time {}", ["get_time"]), ("CALL rm {}", []), ("CALL get_time now", [])):
        server.says(said)
        reply = server.chat("Hi", tools=tools)
        assert [call["function"]["name"] for call in reply.tool_calls] == calls
        assert reply.content == ("" if calls else said)


def test_the_first_example_counts(jackfield_server: StartServer) -> None:
    (example,) = (block for block in blocks("python") if "class Plugin" in block)
    server = jackfield_server(("my-plugin", module(example).Plugin()))
    server.chat("Hi")
    server.wait_until(lambda: server.plugin("my-plugin").answers == 1)


def test_toml_and_json_are_well_formed() -> None:
    assert [tomllib.loads(block) for block in blocks("toml")]
    assert [json.loads(block) for block in blocks("json")]


def test_settings_that_are_named_are_there_with_their_defaults() -> None:
    defaults = {name: field.default for name, field in settings.Settings.model_fields.items()}
    for name in ("hook_seconds", "slow_hook_seconds", "max_plugin_failures", "context_budget", "slow_seconds"):
        assert name in defaults
        for number in re.findall(rf"`{name}` \((\d+)\)", DOCUMENT):
            assert float(number) == defaults[name]
    for name in ("disabled_plugins", "only_plugins", "tool_parser"):
        assert name in defaults
        assert f"`{name}" in DOCUMENT


def test_everything_that_plugins_can_import_is_mentioned() -> None:
    unsaid = {"JsonObject", "hookimpl", "ModelSource", "Backend", "RecordKind", "ToolCallParser"}
    """Only in signatures, or by what is in them."""
    for name in set(hooks.__all__) - unsaid:
        assert re.search(rf"\b{name}\b", DOCUMENT), name


@pytest.mark.parametrize(
    "kind", [hooks.RequestInfo, hooks.Identity, hooks.LogRecord, hooks.Event, hooks.Outcome, hooks.TokenEvent]
)
def test_the_fields_of_data_are_all_there(kind: type) -> None:
    for field in fields(kind):
        assert re.search(rf"`(?:\w+\.)?{field.name}\b[^`]*`", DOCUMENT), field.name


def rows(title: str) -> dict[str, str]:
    """Kinds, and their rows."""
    found = {}
    for line in section(title).splitlines():
        if line.startswith("| `"):
            kinds, rest = line.strip("| ").split(" | ", 1)
            found |= dict.fromkeys(re.findall(r"`(\w+)`", kinds), rest)
    return found


def test_all_kinds_of_records_and_events_are_listed() -> None:
    assert rows("Records").keys() == set(get_args(RecordKind))
    assert rows("Events").keys() == set(get_args(events.EventKind))


def documented_data(kind: str) -> set[str]:
    """The names in a record's row, those in parentheses left out: they are parts of others."""
    row = rows("Records")[kind].partition(" | ")[2]
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row)))


@pytest.fixture
def told(jackfield_server: StartServer) -> JackfieldServer:
    """A server that has answered, failed, and was left alone."""
    from jackfield.errors import EngineError

    server = jackfield_server()
    server.chat("Hi")
    server.says("Half of it", error=EngineError("It broke."))
    assert server.chat("Hi").status == 503
    with server.held():
        with server.streaming("Hi") as chunks:
            next(chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content"))
        server.record("cancelled")
    return server


def test_records_hold_what_is_documented(told: JackfieldServer) -> None:
    for kind in ("received", "backend", "first_token", "completed", "failed", "cancelled"):
        assert set(told.record(kind).data) == documented_data(kind), kind


def test_events_hold_what_is_documented(told: JackfieldServer) -> None:
    for kind in ("failed", "cancelled"):
        named = set(re.findall(r"`(\w+)`", rows("Events")[kind]))
        assert set(told.event(kind).data) == named, kind
    assert "as in the record" in rows("Events")["completed"]
    assert set(told.event("completed").data) <= documented_data("completed")


def test_what_tests_can_use_is_there() -> None:
    table = section("Tests")
    named = set(re.findall(r"server\.(\w+)", table))
    assert len(named) > 8
    assert named <= set(dir(JackfieldServer))
    (row,) = (line for line in table.splitlines() if "a `Reply`" in line)
    attributes = set(re.findall(r"`(\w+)`", row.partition("a `Reply`")[2]))
    assert attributes <= {field.name for field in fields(Reply)} | set(dir(Reply))


def test_links_lead_somewhere() -> None:
    anchors = {f"#{name}" for name in SECTIONS} | {
        "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", DOCUMENT, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", DOCUMENT):
        if target.startswith("#"):
            assert target in anchors, target
        elif not target.startswith("http"):
            assert (Path(__file__).parent.parent / "docs" / target).exists(), target
