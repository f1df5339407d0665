"""The models that the settings name, as they are before anybody has asked for them: nothing is loaded here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jackfield import settings as configuration
from jackfield.errors import ConfigurationError, ModelLoadError
from jackfield.events import EventBus
from jackfield.models import lineup as lineup_module
from jackfield.models.lineup import Lineup
from jackfield.models.progress import Progress
from jackfield.models.registry import Entry

pytestmark = pytest.mark.anyio

FIRST = """
model = "elsewhere"

[upstreams.up]
url = "http://127.0.0.1:9/v1"

[models.elsewhere]
route = ["up"]
"""
"""The first model is not here, so that none is loaded at the start."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def damaged(tiny_model: Path, tmp_path: Path) -> Callable[[str, dict[str, Any]], Path]:
    """A copy of the model, with more in one of its files."""

    def damaged(name: str, more: dict[str, Any]) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder)
        file = folder / name
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | more))
        return folder

    return damaged


async def started(text: str, tmp_path: Path, **options: Any) -> tuple[dict[str, Entry], list[str]]:
    """The models after a start with these settings, by name, and what was told of them."""
    file, told = tmp_path / "jackfield.toml", list[str]()
    file.write_text(FIRST + text)
    settings = configuration.load({}, file, {})
    lineup = Lineup(settings, lambda name, progress: Path(name), EventBus(), tell=told.append, **options)
    await lineup.start()
    await lineup.stop()
    return {entry.id: entry for entry in lineup.registry.entries}, told


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("generation_config.json", {"eos_token_id": 2.0}),
        ("generation_config.json", {"eos_token_id": [[2]]}),
        ("generation_config.json", {"eos_token_id": "</s>"}),
        ("config.json", {"matryoshka_dimensions": 32}),
        ("config.json", {"matryoshka_dimensions": ["wide"]}),
        ("model.safetensors.index.json", {"weight_map": {"a": 5}}),
    ],
    ids=str,
)
async def test_what_is_wrong_in_a_models_files_is_told_and_ends_no_start(
    damaged: Callable[[str, dict[str, Any]], Path], file: str, more: dict[str, Any], tmp_path: Path
) -> None:
    folder = damaged(file, more)
    entries, told = await started(f'[models.broken]\nsource = "{folder}"\n', tmp_path)
    assert entries["broken"].state == "failed"
    assert str(folder / file) in str(entries["broken"].failure)
    assert "broken cannot be served as it is" in told[0]


async def test_what_nobody_has_foreseen_ends_no_start_either(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def surprise(folder: Path, name: str, context_length: int | None) -> None:
        raise KeyError("never seen")

    monkeypatch.setattr(lineup_module, "read_profile", surprise)
    entries, told = await started(f'[models.odd]\nsource = "{tiny_model}"\n', tmp_path)
    assert entries["odd"].state == "failed"
    assert isinstance(entries["odd"].failure, ModelLoadError)
    assert told == ["odd cannot be served as it is: Loading it failed with KeyError: 'never seen'"]
    assert caplog.records[-1].exc_info is not None


class Share:
    """A plugin's source, which knows names that begin with share."""

    def matches(self, name: str) -> bool:
        return name.startswith("share:")

    def fetch(self, name: str, cache: Path, progress: Progress) -> Path:
        raise AssertionError("nobody has asked for it")


async def test_of_a_model_that_only_a_plugin_knows_nothing_is_said_before_it_is_fetched(tmp_path: Path) -> None:
    entries, told = await started('[models.shared]\nsource = "share:small"\n', tmp_path, plugged=[Share()])
    assert entries["shared"].state == "unloaded"
    assert told == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "./d/coder"\n[models.coder]\nsource = "starter"\n', "Two models would be called 'coder'"),
        ('model = "sql"\n[models.sql]\nadapters = { sql = "./ad" }\n', "'sql' would mean a model and an adapter"),
    ],
)
def test_one_name_for_two_models_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d" / "coder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jackfield.toml").write_text(text)
    settings = configuration.load({}, tmp_path / "jackfield.toml", {})
    with pytest.raises(ConfigurationError, match=message):
        Lineup(settings, lambda name, progress: Path(name), EventBus(), tell=print)


def test_folders_are_called_as_they_are_wherever_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``--model ./small --model ./other --alias gpt=./small --alias o3=./other``."""
    for name in ("small", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    aliases = {"gpt": "./small", "o3": "./other"}
    settings = configuration.load({"model": "./small", "models": {"./other": {}}, "aliases": aliases}, None, {})
    registry = Lineup(settings, lambda name, progress: Path(name), EventBus(), tell=print).registry
    assert registry.names == ("small", "other")
    assert {name: registry.entry(name).id for name in aliases} == {"gpt": "small", "o3": "other"}
