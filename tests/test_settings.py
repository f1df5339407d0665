"""Settings: later layers win, and a wrong one is named with where it comes from."""

import pytest

from jackfield.errors import ConfigurationError
from jackfield.settings import load


def test_defaults():
    settings = load({}, environment={})
    assert (settings.model, settings.host, settings.port) == ("starter", "127.0.0.1", 8080)


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(tmp_path):
    file = tmp_path / "jackfield.toml"
    file.write_text('model = "file"\nport = 1\nhost = "::1"\nmax_batch = 3\n')
    environment = {"JACKFIELD_MODEL": "environment", "JACKFIELD_PORT": "2", "JACKFIELD_HOST": ""}
    settings = load({"model": "flag", "port": None}, file, environment)
    assert (settings.model, settings.port, settings.host, settings.max_batch) == ("flag", 2, "::1", 3)


@pytest.mark.parametrize(
    ("flags", "text", "environment", "message", "hint"),
    [
        ({"port": 99999}, "", {}, "'port' from the command line", "Correct 'port'"),
        ({}, "", {"JACKFIELD_PORT": "http"}, "'port' from the environment", "Correct 'port'"),
        ({}, "prot = 1", {}, "Unknown setting 'prot'", "Did you mean 'port'?"),
        ({}, "colour = 1", {}, "Unknown setting 'colour'", "Known settings"),
        ({}, "port = ", {}, "cannot be read", "syntax"),
        ({"dtype": "float8"}, "", {}, "'dtype' from the command line", "Correct 'dtype'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, flags, text, environment, message, hint):  # noqa: PLR0917
    file = tmp_path / "jackfield.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(flags, file, environment)
    assert hint in caught.value.suggestions[0]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml cannot be read"):
        load({}, tmp_path / "nowhere.toml", {})
