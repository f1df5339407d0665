"""``jackfield config``: what is set, where it comes from, and a file to begin with."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jackfield.cli import main
from jackfield.settings import Settings, describe, load
from jackfield.settings.model import ModelSettings
from jackfield.settings.upstreams import UpstreamSettings
from test_discovery import install, site  # noqa: F401 - a fixture

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

SECRETIVE = """
from jackfield.hooks import hookimpl
from pydantic import BaseModel, SecretStr

class Wall(BaseModel, extra="forbid"):
    height: int = 1

class Settings(BaseModel):
    walls: list[Wall] = []
    token: SecretStr = SecretStr("")
    colour: str = "red"

class Plugin:
    @hookimpl
    def configure(self):
        return Settings
"""


def config(*arguments: str, **environment: str) -> Result:
    clean = {"JACKFIELD_PLUGINS": "none", "JACKFIELD_CONFIG": "/dev/null", **environment}
    return CliRunner().invoke(main, ["config", *arguments], env={**clean, "COLUMNS": "200"})


def shown(*arguments: str, **environment: str) -> dict[str, dict[str, object]]:
    result = config("show", "--json", *arguments, **environment)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["settings"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jackfield.toml"


def test_it_shows_all_settings_and_where_they_come_from(file: Path) -> None:
    file.write_text('port = 1\nmax_batch = 2\nhost = "::1"\n')
    settings = shown("--config", str(file), "--port", "9", "--alias", "a=starter", JACKFIELD_HOST="127.0.0.2")
    assert settings.keys() == Settings.model_fields.keys() - {"plugins"}
    assert settings["port"] == {"value": 9, "from": "flag", "name": "--port"}
    assert settings["host"] == {"value": "127.0.0.2", "from": "environment", "name": "JACKFIELD_HOST"}
    assert settings["max_batch"] == {"value": 2, "from": "file", "name": str(file)}
    assert settings["dtype"] == {"value": "auto", "from": "default", "name": ""}
    assert settings["aliases"]["name"] == "--alias"


def test_people_get_a_table(file: Path) -> None:
    file.write_text("max_batch = 2\n")
    result = config("show", "--changed", "--config", str(file), JACKFIELD_FOREIGN="x")
    assert re.search(rf"^max_batch +2 +file {re.escape(str(file))} *$", result.stdout, re.MULTILINE)
    assert not re.search(r"^port ", result.stdout, re.MULTILINE)
    assert f"The file is {file}." in result.stdout
    assert "In the environment, but no settings: JACKFIELD_FOREIGN" in result.stdout
    assert re.search(r"^port +8080 +default *$", config("show").stdout, re.MULTILINE)


def test_secrets_of_plugins_are_masked(site: Path, file: Path) -> None:  # noqa: F811
    install(site, "secretive", SECRETIVE)
    install(site, "broken", "import nothing_like_it")
    file.write_text('[plugins.secretive]\ntoken = "hush"\n[plugins.broken]\npassword = "hush"\n')
    result = config("show", "--json", "--config", str(file), JACKFIELD_PLUGINS="")
    settings = json.loads(result.stdout)["settings"]
    assert settings["plugins.secretive.token"] == {"value": "**********", "from": "file", "name": str(file)}
    assert settings["plugins.secretive.colour"] == {"value": "red", "from": "default", "name": ""}
    assert settings["plugins.broken.password"]["value"] == "**********"
    assert "hush" not in result.output
    assert "hush" not in config("show", "--config", str(file), JACKFIELD_PLUGINS="").output


WRONG = {
    "prot = 1": "Unknown setting 'prot'",
    "[plugins.secretive]\ncolor = 1": "Did you mean 'colour'?",
    "[[plugins.secretive.walls]]\nheigt = 1": "Did you mean 'height'?",
    "[plugins.secretiv]": "Did you mean 'secretive'?",
    "[models.a]\nsauce = 'b'": "Did you mean 'source'?",
    "port = ?": "line 1, column 8",
}


@pytest.mark.parametrize("text", WRONG)
def test_it_tells_what_is_wrong(site: Path, file: Path, text: str) -> None:  # noqa: F811
    install(site, "secretive", SECRETIVE)
    file.write_text(text)
    result = config("check", "--config", str(file), JACKFIELD_PLUGINS="")
    assert result.exit_code == 1
    assert WRONG[text] in result.stderr


def test_it_tells_that_nothing_is_wrong(file: Path) -> None:
    file.write_text("port = 1\n")
    assert config("check", JACKFIELD_CONFIG=str(file)).stdout == f"The settings are right. The file is {file}.\n"


def test_help_is_there_although_the_settings_are_wrong() -> None:
    result = CliRunner().invoke(main, ["--help"], env={"JACKFIELD_PORT": "http"})
    assert result.exit_code == 0
    assert "config" in result.stdout


def test_a_new_file_changes_nothing_and_has_everything(file: Path) -> None:
    assert config("init", "--output", str(file)).exit_code == 0
    assert load({}, file, environment={}) == Settings()
    lines = file.read_text().splitlines()
    values = [line.removeprefix("#") for line in lines if re.match(r"#\w+ = ", line)]
    assert len(values) == sum(one.default is not None for one in describe.described()) - len(describe.TABLES)
    tables = [line.removeprefix("#") for line in lines if line.startswith("#[")]
    assert tomllib.loads("\n".join(tables)).keys() == set(describe.TABLES)
    file.write_text("\n".join(values))
    assert load({}, file, environment={}) == Settings()


def test_a_file_that_is_there_stays(file: Path) -> None:
    file.write_text("port = 1\n")
    result = config("init", "--output", str(file))
    assert (result.exit_code, file.read_text()) == (1, "port = 1\n")
    assert "is there already" in result.stderr
    assert "cannot be written" in config("init", "--output", str(file / "below.toml")).stderr
    assert config("init", "--output", "-").stdout == f"{describe.template()}\n"


def test_the_path_is_where_the_file_is_or_would_be(file: Path) -> None:
    assert config("path", JACKFIELD_CONFIG=str(file)).stdout == f"{file}\n"
    assert config("path", JACKFIELD_CONFIG="").stdout.endswith("jackfield.toml\n")


SECTIONS = {"All settings": Settings, "A table of `models`": ModelSettings, "A table of `upstreams`": UpstreamSettings}


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_all_settings_as_they_are(heading: str) -> None:
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    settings = list(describe.described(SECTIONS[heading]))
    assert re.findall(r"^\| `[a-z_]+` \|.*", section, re.M) == [row(one) for one in settings]
    assert all(one.meaning for one in settings)


def row(setting: describe.Described) -> str:
    default = "" if setting.default is None else f"`{describe.literal(setting.default)}`"
    # Elsewhere on other systems.
    default = "the user's folder for caches" if setting.name == "cache_dir" else default
    return f"| `{setting.name}` | {default} | {setting.meaning} |"


def test_an_address_that_others_reach_is_checked(file: Path, tmp_path: Path) -> None:
    """As serve does, which does not start like that."""
    file.write_text(f'host = "0.0.0.0"\nkeys_file = "{tmp_path / "keys.json"}"\n')
    result = config("check", "--config", str(file))
    assert (result.exit_code, "It does not start like that." in result.stderr) == (1, True), result.output
    assert "jackfield keys create" in result.stderr
    assert config("check", "--config", str(file), JACKFIELD_API_KEY="x" * 20).exit_code == 0
