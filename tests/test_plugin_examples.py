"""Every example is a distribution that can be installed, and whose own tests pass."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "plugin_examples"
NAMES = ("authenticator", "hello-world", "logits-processor", "page", "tool-parser")


def run(*command: str | Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run something with Python, where what is in ``site`` is installed."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "JACKFIELD_PLUGINS": ",".join(NAMES)},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all examples are installed in, without the network."""
    folder = tmp_path_factory.mktemp("site")
    offline = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    result = run("-m", "pip", "install", *offline, "--target", folder, *map(EXAMPLES.joinpath, NAMES), site=folder)
    assert result.returncode == 0, result.stderr
    return folder


def project(name: str) -> dict[str, Any]:
    return tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text("utf-8"))


def test_these_are_all_examples() -> None:
    assert {folder.name for folder in EXAMPLES.iterdir()} == set(NAMES)


@pytest.fixture(scope="module")
def tested(site: Path) -> str:
    """What pytest says of all their tests: it takes longer to start than these do."""
    settings = (
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        EXAMPLES,
        "-c",
        EXAMPLES / NAMES[0] / "pyproject.toml",
    )
    return run("-m", "pytest", *settings, *map(EXAMPLES.joinpath, NAMES), site=site).stdout


@pytest.mark.parametrize("name", NAMES)
def test_its_own_tests_pass(name: str, tested: str) -> None:
    outcomes = {
        line.split()[0]
        for line in tested.splitlines()
        if line.startswith(("PASSED", "FAILED", "ERROR")) and f"/{name}/tests/" in line
    }
    assert outcomes == {"PASSED"}, tested


def test_all_tests_are_run_in_the_same_way() -> None:
    (settings,) = {str(project(name)["tool"]["pytest"]["ini_options"]) for name in NAMES}
    assert "'error'" in settings


@pytest.mark.parametrize("name", NAMES)
def test_it_is_named_like_its_folder(name: str) -> None:
    declared = project(name)["project"]
    module = f"jackfield_{name.replace('-', '_')}"
    assert declared["name"] == f"jackfield-{name}"
    assert declared["entry-points"]["jackfield"] == {name: f"{module}:Plugin"}
    assert (EXAMPLES / name / module / "py.typed").exists()


@pytest.mark.parametrize("name", NAMES)
def test_its_readme_fits_on_a_screen(name: str) -> None:
    lines = (EXAMPLES / name / "README.md").read_text("utf-8").splitlines()
    assert lines[0] == f"# jackfield-{name}"
    assert len(lines) <= 50


def test_all_of_them_can_be_plugged_in_at_once(site: Path) -> None:
    result = run("-m", "jackfield", "plugins", "--json", site=site)
    assert result.returncode == 0, result.stderr
    found = {plugin["name"]: plugin for plugin in json.loads(result.stdout)["data"]}
    assert found.keys() == set(NAMES)
    for plugin in found.values():
        assert (plugin["state"], plugin["errors"], plugin["version"]) == ("active", [], "0.1.0")


def test_settings_in_readmes_are_all_settings(site: Path) -> None:
    result = run("-m", "jackfield", "plugins", "--json", site=site)
    for plugin in json.loads(result.stdout)["data"]:
        readme = (EXAMPLES / plugin["name"] / "README.md").read_text("utf-8")
        for setting in plugin["settings"]:
            assert f"`{setting}`" in readme or f".{setting}]]" in readme, setting
