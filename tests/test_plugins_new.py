"""From ``jackfield plugins new`` to a passing test to a running server, as authors go; and ``jackfield plugins``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from serving import serve

DOCUMENT = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text("utf-8")


def run(
    *command: str | Path, site: Path | None = None, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run something with Python, where what is in ``site`` is installed besides."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": _with(site), **environment},
    )


def _with(site: Path | None) -> str:
    return os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH")]))


def install(project: Path, site: Path) -> None:
    """As ``pip install`` would, but into a folder and without the network."""
    offline = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    result = run("-m", "pip", "install", *offline, "--target", site, project)
    assert result.returncode == 0, result.stderr


def new(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "jackfield", "plugins", "new", *arguments, **environment)


def plugins(*arguments: str | Path, site: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "jackfield", "plugins", *arguments, site=site, **environment)


def test_from_nothing_to_a_running_server(tmp_path: Path, tiny_model: Path) -> None:
    folder, site = tmp_path / "jackfield-my-plugin", tmp_path / "site"

    made = new("my-plugin", "--directory", tmp_path)
    assert made.returncode == 0, made.stderr
    for step in (f"cd {folder}", "pip install -e '.[test]'", "pytest", "jackfield serve"):
        assert f"  {step}" in made.stdout

    install(folder, site)

    (example,) = re.findall(r"^```python\n(from jackfield.testing.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    (folder / "tests" / "test_from_the_docs.py").write_text(example)
    tested = run("-m", "pytest", "-q", site=site, cwd=folder)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "4 passed" in tested.stdout

    settings = tmp_path / "jackfield.toml"
    settings.write_text("[plugins.my-plugin]\nlong = 3\n")
    chosen = {"PYTHONPATH": _with(site), "JACKFIELD_PLUGINS": "my-plugin"}
    with serve(tiny_model, "--config", str(settings), **chosen) as server, httpx2.Client(base_url=server.url) as client:
        (listed,) = client.get("/v1/plugins").json()["data"]
        assert (listed["name"], listed["version"], listed["state"]) == ("my-plugin", "0.1.0", "active")
        assert (listed["settings"], listed["errors"]) == ({"long": 3}, [])
        assert client.get("/my-plugin").json() == {"answers": 0}
        body = {"model": server.model, "prompt": "Hi", "max_tokens": 3, "ignore_eos": True}
        assert client.post("/v1/completions", json=body, timeout=60).status_code == 200
        assert "jackfield_my_plugin_long_answers_total" in client.get("/metrics").text


def test_what_was_made_tests_its_plugin(tmp_path: Path) -> None:
    """Tests that pass whatever the plugin does would be worth nothing."""
    new("broken", "--directory", tmp_path)
    code = tmp_path / "jackfield-broken" / "jackfield_broken" / "__init__.py"
    code.write_text(code.read_text().replace("ge=1", "ge=0"))
    install(tmp_path / "jackfield-broken", tmp_path / "site")
    tested = run("-m", "pytest", "-q", "-k", "wrong", site=tmp_path / "site", cwd=tmp_path / "jackfield-broken")
    assert tested.returncode == 1
    assert "DID NOT RAISE" in tested.stdout


def test_what_was_made_is_well_formed(tmp_path: Path) -> None:
    new("a2-b", "--directory", tmp_path)
    folder = tmp_path / "jackfield-a2-b"
    written = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert written == [
        "README.md",
        "jackfield_a2_b/__init__.py",
        "jackfield_a2_b/py.typed",
        "pyproject.toml",
        "tests/test_jackfield_a2_b.py",
    ]
    for file in written:
        assert "$" not in (folder / file).read_text("utf-8"), file
    for check in (["check"], ["format", "--check"]):
        result = run("-m", "ruff", *check, "--isolated", "--line-length", "120", folder)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("My Plugin", "jackfield plugins new my-plugin"),
        ("3d", "jackfield plugins new d"),
        ("a_b", "jackfield plugins new a-b"),
        ("a--b", "jackfield plugins new a-b"),
        ("-", ""),
        ("../up", "jackfield plugins new up"),
        ("x" * 41, f"jackfield plugins new {'x' * 40}"),
        ("jackfield-mine", "jackfield plugins new mine"),
    ],
)
def test_bad_names_are_refused_with_a_better_one(tmp_path: Path, name: str, advice: str) -> None:
    result = new("--directory", tmp_path, "--", name)
    assert result.returncode == 1
    assert advice in result.stderr
    assert "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    new("mine", "--directory", tmp_path)
    code = tmp_path / "jackfield-mine" / "jackfield_mine" / "__init__.py"
    code.write_text("changed")
    result = new("mine", "--directory", tmp_path)
    assert result.returncode == 1
    assert "is there already" in result.stderr
    assert code.read_text() == "changed"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = new("mine", "--directory", tmp_path / "file" / "below")
    assert result.returncode == 1
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


# --- jackfield plugins ----------------------------------------------------------------------------------------------

PLUGIN = '''\
"""For a test."""

from pydantic import BaseModel, ConfigDict, SecretStr

from jackfield.hooks import hookimpl


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: str = "red"
    token: SecretStr = SecretStr("")


class Plugin:
    @hookimpl
    def configure(self) -> type[BaseModel]:
        return Settings
'''


def distribution(site: Path, name: str, code: str) -> None:
    """Put a plugin into ``site`` as an installer would have left it."""
    module = f"jackfield_{name}"
    information = site / f"{module}-1.2.3.dist-info"
    information.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: jackfield-{name}\nVersion: 1.2.3\n")
    (information / "entry_points.txt").write_text(f"[jackfield]\n{name} = {module}:Plugin\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A plugin that works, and one that cannot be imported."""
    distribution(tmp_path / "site", "works", PLUGIN)
    distribution(tmp_path / "site", "breaks", "raise RuntimeError('not today')\n")
    return tmp_path / "site"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "jackfield.toml"
    file.write_text('[plugins.works]\ncolour = "blue"\ntoken = "swordfish"\n')
    return file


def test_help_has_examples() -> None:
    assert "jackfield plugins new my-plugin" in plugins("--help").stdout
    assert "jackfield plugins new my-plugin" in plugins("new", "--help").stdout


def test_json_lists_everything_and_masks_secrets(site: Path, settings: Path) -> None:
    result = plugins("--config", settings, "--json", site=site)
    assert result.returncode == 0, result.stderr
    found = {plugin["name"]: plugin for plugin in json.loads(result.stdout)["data"]}
    works, breaks = found["works"], found["breaks"]
    assert (works["version"], works["state"], works["hooks"]) == ("1.2.3", "active", ["configure"])
    assert works["settings"] == {"colour": "blue", "token": "**********"}
    assert breaks["state"] == "failed"
    assert "not today" in breaks["errors"][0]
    assert "swordfish" not in result.stdout + result.stderr


def test_the_table_shows_the_same(site: Path, settings: Path) -> None:
    result = plugins("--config", settings, site=site, COLUMNS="120")
    assert result.returncode == 0, result.stderr
    for shown in (
        "works 1.2.3",
        "active",
        "configure",
        'colour = "blue"',
        'token = "**********"',
        "failed",
        "not today",
    ):
        assert shown in result.stdout
    assert "swordfish" not in result.stdout + result.stderr


CONFUSED = """\
from jackfield.hooks import hookimpl

class Plugin:
    @hookimpl
    def log_record(self, entry):
        pass
"""


def test_a_hook_with_a_wrong_argument_is_shown_as_failed(site: Path) -> None:
    distribution(site, "confused", CONFUSED)
    result = plugins("--json", site=site)
    assert result.returncode == 0, result.stderr
    (found,) = (plugin for plugin in json.loads(result.stdout)["data"] if plugin["name"] == "confused")
    assert found["state"] == "failed"
    assert "entry" in found["errors"][0]


def test_a_wrong_setting_is_told(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[plugins.works]\ncolur = 'blue'\n")
    result = plugins("--config", file, site=site)
    assert result.returncode == 1
    assert "colur" in result.stderr
    assert "colour" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_plugins_it_says_how_to_begin(site: Path) -> None:
    result = plugins(site=site, JACKFIELD_PLUGINS="none")
    assert result.returncode == 0, result.stderr
    assert "jackfield plugins new NAME" in result.stdout
    assert json.loads(plugins("--json", site=site, JACKFIELD_PLUGINS="none").stdout) == {"object": "list", "data": []}


def test_the_name_of_an_installed_plugin_is_refused(site: Path, tmp_path: Path) -> None:
    result = run("-m", "jackfield", "plugins", "new", "works", "--directory", tmp_path, site=site)
    assert result.returncode == 1
    assert "There is a plugin 'works' already" in result.stderr
