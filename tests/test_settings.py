"""Settings: later layers win, and a wrong one is named with where it comes from."""

import pytest

from jackfield.errors import ConfigurationError
from jackfield.settings import Settings, load, origin, read


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


@pytest.mark.parametrize(
    ("variable", "near"), [("JACKFIELD_PROT", "JACKFIELD_PORT"), ("JACKFIELD_API_KEY", None), ("JACKFIELD_FOO", None)]
)
def test_a_variable_that_looks_like_a_settings_is_refused_and_others_are_not(variable, near):
    if near is None:
        assert load({}, environment={variable: "x"}) == Settings()
        return
    with pytest.raises(ConfigurationError, match=variable) as caught:
        load({}, environment={variable: "x"})
    assert caught.value.suggestions == (f"Did you mean {near}?",)


def test_the_file_is_where_the_flag_says_or_the_variable_or_where_it_usually_is(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("flag.toml", "variable.toml", "own.toml", "machine.toml")]
    for number, file in enumerate(files, 1):
        file.write_text(f"port = {number}\n")
    monkeypatch.setattr(origin, "file_places", lambda: [tmp_path / "nowhere.toml", files[2], files[3]])
    named = {"JACKFIELD_CONFIG": str(files[1])}
    assert [read({}, file, environment).settings.port for file, environment in ((files[0], named), (None, named))] == [
        1,
        2,
    ]
    assert read({}, None, {}).file == files[2], "the first one that is there"
    assert load({}, None, {}).port == 8080, "which only those look for who ask for it"


def test_each_value_knows_where_it_comes_from(tmp_path):
    file = tmp_path / "jackfield.toml"
    file.write_text('model = "file"\nport = 1\nhost = "::1"\n')
    found = read({"port": 2}, file, {"JACKFIELD_MODEL": "environment", "JACKFIELD_PLUGINS": "none"})
    told = {name: found.origin(name) for name in ("model", "port", "host", "only_plugins", "dtype")}
    assert told == {
        "model": ("environment", "JACKFIELD_MODEL"),
        "port": ("flag", "--port"),
        "host": ("file", str(file)),
        "only_plugins": ("environment", "JACKFIELD_PLUGINS"),
        "dtype": ("default", ""),
    }


@pytest.mark.parametrize("name", ["keys_file", "cache_dir"])
def test_a_path_may_begin_in_the_users_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "jackfield.toml"
    file.write_text(f'{name} = "~/here"\n')
    variable = {f"JACKFIELD_{name.upper()}": "~/here"}
    for settings in (load({}, file, {}), load({}, None, variable), load({name: "~/here"}, None, {})):
        assert getattr(settings, name) == tmp_path / "here"


def test_a_user_whom_nobody_knows():
    with pytest.raises(ConfigurationError, match="'cache_dir' from the environment"):
        load({}, None, {"JACKFIELD_CACHE_DIR": "~nobody-of-that-name/here"})
