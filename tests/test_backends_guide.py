"""docs/backends.md and docs/scale.md: their settings are read, and say what the pages say."""

import re
from pathlib import Path
from typing import get_args

import pytest

from jackfield import settings as configuration
from jackfield.backends.route import Reason
from jackfield.errors import ConfigurationError
from jackfield.events import EventBus
from jackfield.hooks.discovery import discover
from jackfield.models.lineup import Lineup, at_start
from jackfield.settings import Settings
from jackfield.settings.upstreams import RouteStep, UpstreamSettings

DOCS = Path(__file__).parent.parent / "docs"
GUIDE = (DOCS / "backends.md").read_text()


def settings_of(page: str, folder: Path) -> Settings:
    (toml,) = re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text(), re.S)
    file = folder / "jackfield.toml"
    file.write_text(toml)
    return configuration.load({}, file, {})


def test_its_settings_say_what_it_says(tmp_path: Path) -> None:
    settings = settings_of("backends.md", tmp_path)
    office = settings.upstreams["office"]
    assert office.key == "its key"
    assert office.model_copy(update={"api_key": None}) == UpstreamSettings(url=office.url)
    assert [step.backend for step in settings.models["coder"].route] == ["mlx", "office", "mlx"]
    assert at_start(settings) == ["mlx-community/Qwen2.5-Coder-7B-Instruct-4bit"]
    registry = Lineup(settings, lambda name, progress: Path(), EventBus(), tell=print).registry
    assert {entry.id: entry.state for entry in registry.entries} == {"coder": "unloaded", "large": "remote"}
    assert "its key" not in repr(settings)


def test_the_page_on_scale_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    settings = settings_of("scale.md", tmp_path)
    assert settings.upstreams["vllm"].key == "secret"
    assert not (set(settings.upstreams) - {step.backend for one in settings.models.values() for step in one.route})


def test_all_conditions_and_reasons_are_on_the_page() -> None:
    table = GUIDE.split("## A route")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(RouteStep.model_fields)
    assert all(f"`{reason}`" in table for reason in get_args(Reason))


WRONG = {
    'route = ["offcie"]': "Did you mean 'office'?",
    'route = [{ backend = "office", max_queu = 1 }]': "Did you mean 'max_queue'?",
    'route = [{ backend = "office", capabilities = ["dance"] }]': "Correct",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_slip_in_a_route_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text(f'[upstreams.office]\nurl = "http://a/v1"\n[models.far]\n{line}\n')
    with pytest.raises(ConfigurationError) as told:
        # Plugins may bring those that routes lead to.
        discover(configuration.load({"only_plugins": ()}, file, {}))
    assert WRONG[line] in told.value.suggestions[0]


@pytest.mark.parametrize(
    "lines",
    [
        'url = "ftp://a/v1"',
        'url = "http://me:secret@a/v1"',
        'url = "http://a/v1"\napi_key = "a"\napi_key_env = "B"',
        'url = "http://a/v1"\napi_key_env = "NOT_SET_ANYWHERE"',
        'url = "http://a/v1"\nfirst_second = 1',
    ],
)
def test_a_slip_in_an_upstream_is_refused(tmp_path: Path, lines: str) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text(f"[upstreams.office]\n{lines}\n")
    with pytest.raises(ConfigurationError, match=r"upstreams\.office") as told:
        configuration.load({}, file, {})
    assert "secret" not in str(told.value)


def test_no_upstream_is_called_as_the_engine_is(tmp_path: Path) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text('[upstreams.mlx]\nurl = "http://a/v1"\n')
    with pytest.raises(ConfigurationError, match="cannot be called"):
        configuration.load({}, file, {})
