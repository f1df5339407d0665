"""Installed plugins are found, one that is broken stops nobody, and what is wrong is told."""

import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from jackfield.errors import ConfigurationError
from jackfield.hooks.discovery import discover
from jackfield.settings import Settings, load
from serving import serve

GOOD = """
import click
from jackfield.hooks import hookimpl

class Folder:
    def matches(self, name):
        return name.startswith("shelf:")

    def fetch(self, name, cache, progress):
        from pathlib import Path
        return Path(name.removeprefix("shelf:"))

class Plugin:
    @hookimpl
    def register_commands(self, cli):
        @cli.command("greet", help="Say hello.")
        @click.argument("name")
        def greet(name):
            click.echo(f"Hello, {name}")

    @hookimpl
    def register_model_sources(self, register):
        register("shelf", Folder)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where distributions are installed, for this process and its children."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def install(site: Path, name: str, source: str, *, distribution: str | None = None) -> None:
    # Modules are remembered by name, from one test to the next.
    module = re.sub(r"\W", "_", f"plugin_{name}_{site.parent.name}")
    (site / f"{module}.py").write_text(source)
    info = site / f"{distribution or name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[jackfield]\n{name} = {module}:Plugin\n")


def settings(*names: str, **more: object) -> Settings:
    return Settings(only_plugins=names, **more)  # type: ignore[arg-type]


def test_an_installed_plugin_is_found_with_its_version_and_hooks(site: Path) -> None:
    install(site, "greeter", GOOD)
    (report,) = discover(settings("greeter")).reports()
    assert (report["name"], report["version"], report["state"]) == ("greeter", "1.2", "active")
    assert report["hooks"] == ["register_commands", "register_model_sources"]


BROKEN = {
    "import": "import nothing_like_it",
    "exit": "raise SystemExit(3)",
    "syntax": "this is no python",
    "arguments": "class Plugin:\n    def __init__(self, x): pass",
    "missing": "",
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_stops_nobody(site: Path, source: str) -> None:
    install(site, "greeter", GOOD)
    install(site, "broken", source)
    reports = {report["name"]: report for report in discover(Settings(disabled_plugins=installed(site))).reports()}
    assert reports["greeter"]["state"] == "active"
    assert reports["broken"]["state"] == "failed"
    assert reports["broken"]["errors"]


def installed(site: Path) -> tuple[str, ...]:
    """What is installed besides."""
    here = {path.name.removesuffix("-1.2.dist-info") for path in site.glob("*.dist-info")}
    return tuple(report["name"] for report in discover(Settings()).reports() if report["name"] not in here)


def test_one_that_is_asked_for_and_broken_stops_the_server(site: Path) -> None:
    install(site, "broken", "import nothing_like_it")
    with pytest.raises(ConfigurationError, match="broken was asked for and cannot be loaded: ModuleNotFoundError"):
        discover(settings("broken"))


def test_one_that_is_asked_for_and_not_there_is_told(site: Path) -> None:
    install(site, "greeter", GOOD)
    with pytest.raises(ConfigurationError, match="There is no plugin 'greter'") as caught:
        discover(settings("greter"))
    assert "Did you mean 'greeter'?" in caught.value.suggestions
    with pytest.raises(ConfigurationError, match="There is no plugin 'elsewhere'"):
        discover(Settings(plugins={"elsewhere": {"a": 1}}))


def test_two_distributions_with_one_plugin_are_refused(site: Path) -> None:
    install(site, "greeter", GOOD)
    install(site, "greeter", GOOD, distribution="other-greeter")
    with pytest.raises(ConfigurationError, match="Two plugins are called 'greeter'"):
        discover(settings("greeter"))


def test_the_environment_and_flags_choose_plugins() -> None:
    assert load({}, environment={"JACKFIELD_PLUGINS": "a, b"}).only_plugins == ("a", "b")
    assert load({}, environment={"JACKFIELD_PLUGINS": "none"}).only_plugins == ()
    assert load({"disabled_plugins": ("a",)}, environment={}).disabled_plugins == ("a",)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jackfield", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_plugins_commands_are_there(site: Path) -> None:
    install(site, "greeter", GOOD)
    install(site, "broken", "import nothing_like_it")
    assert run("greet", "you").stdout == "Hello, you\n"
    listed = run("--help")
    assert listed.returncode == 0
    assert "Say hello." in listed.stdout
    unknown = run("gret", "you")
    assert unknown.returncode == 2
    assert "No such command 'gret'" in unknown.stderr


def test_a_server_has_just_the_plugins_that_are_asked_for(site: Path, tiny_model: Path) -> None:
    """And takes its model from a place that one of them knows."""
    install(site, "greeter", GOOD)
    install(site, "other", GOOD)
    with serve(f"shelf:{tiny_model}", JACKFIELD_PLUGINS="greeter", PYTHONPATH=str(site)) as server:
        listed = httpx2.get(f"{server.api}/plugins").json()["data"]
        assert [plugin["name"] for plugin in listed] == ["greeter"]


def test_a_server_does_without_a_plugin_that_is_disabled(site: Path, tiny_model: Path) -> None:
    install(site, "greeter", GOOD)
    environment = {"JACKFIELD_PLUGINS": "", "PYTHONPATH": str(site)}
    with serve(tiny_model, "--disable-plugin", "greeter", **environment) as server:
        listed = httpx2.get(f"{server.api}/plugins").json()["data"]
        assert "greeter" not in [plugin["name"] for plugin in listed]
