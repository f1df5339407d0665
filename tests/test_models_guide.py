"""docs/models.md: its settings are read, its commands parse, and what it says of `GET /v1/models` is all there is."""

import re
import shlex
from pathlib import Path

import click
import pytest

from jackfield import settings as configuration
from jackfield.cli import main
from jackfield.events import EventBus
from jackfield.models.lineup import Lineup, at_start, named
from jackfield.protocol.models import ModelReport

GUIDE = (Path(__file__).parent.parent / "docs" / "models.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.S)


def test_its_settings_say_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text("\n".join(blocks("toml")))
    settings = configuration.load({}, file, {})
    assert named(settings) == ("small", "coder")
    assert at_start(settings) == ["starter"]
    coder = settings.of_model("coder")
    assert (coder.model, coder.context_length, coder.kv_bits) == (
        "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit",
        32768,
        8,
    )
    assert coder.adapters == {"sql": "./adapters/sql", "law": "org/qwen2.5-coder-7b-law"}
    registry = Lineup(settings, lambda name, progress: Path(), EventBus(), tell=print).registry
    assert {name: registry.entry(name).id for name in ("gpt-4o", "gpt-4.1", "sql", "gpt-4o-mini")} == {
        "gpt-4o": "coder",
        "gpt-4.1": "coder",
        "sql": "coder",
        "gpt-4o-mini": "small",
    }
    assert registry.entry("small").pinned
    assert registry.entry("coder").unload_after == 900


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_its_commands_are_understood(line: str) -> None:
    program, *names = shlex.split(line, comments=True)
    assert program == "jackfield"
    command: click.Command = main
    while isinstance(command, click.Group):
        name, *names = names
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    assert isinstance(command.make_context(command.name, names), click.Context)


def test_it_lists_all_that_is_told_of_a_model() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", GUIDE, re.M)
    assert rows == list(ModelReport.model_fields)
