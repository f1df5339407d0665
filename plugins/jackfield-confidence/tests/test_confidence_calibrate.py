"""`jackfield confidence`: graded answers go in, weights come out, and are found again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from jackfield.errors import JackfieldError
from jackfield_confidence import Plugin
from jackfield_confidence.calibration import Calibration
from jackfield_confidence.factors import NAMES
from jackfield_confidence.store import Store
from jackfield_confidence.weights import DEFAULT


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JACKFIELD_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "plugins" / "confidence"


def graded(count: int, seed: int = 0, **also: Any) -> list[dict[str, Any]]:
    """Answers of a model that is right far more often than the default weights think."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        values = dict.fromkeys(NAMES, 0.0) | {"weakest": generator.random(), "news": -3 * generator.random()}
        logit = 0.5 + 0.5 * values["weakest"] + 0.2 * values["news"]
        found.append({"factors": values, "correct": bool(generator.random() < 1 / (1 + np.exp(-logit))), **also})
    return found


def written(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def run(*arguments: object) -> Result:
    cli = click.Group()
    Plugin().register_commands(cli)
    return CliRunner().invoke(cli, ["confidence", *map(str, arguments)])


def calibrated(*arguments: object) -> dict[str, Any]:
    result = run("calibrate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.output))


def refused(*arguments: object) -> JackfieldError:
    error = run("calibrate", *arguments).exception
    assert isinstance(error, JackfieldError), error
    assert error.suggestions or "UTF-8" in error.message
    return error


def test_weights_are_fitted_stored_shown_and_forgotten(tmp_path, data):
    file = written(tmp_path / "graded.jsonl", graded(600, model="my/model"))
    result = run("calibrate", file)
    assert result.exit_code == 0
    assert "my/model: 600 answers" in result.output
    stored = Store(data).all()["my/model"]
    assert stored.answers == 600
    assert stored.after.log_loss < stored.before.log_loss
    assert stored.after.calibration_error < stored.before.calibration_error
    assert "my/model: 600 answers" in run("show").output
    assert json.loads(run("show", "my/model", "--json").output)[0]["slopes"] == stored.slopes
    assert run("forget", "my/model").exit_code == 0
    assert "No model has weights" in run("show").output


def test_the_fitted_weights_are_better_for_new_answers_of_the_model(tmp_path):
    found = calibrated(written(tmp_path / "a", graded(800, model="m")))
    weights = Calibration.model_validate({k: v for k, v in found.items() if k != "file"}).weights
    fresh = graded(4000, seed=1)
    loss = {
        name: np.mean([(one.score(answer["factors"]) - answer["correct"]) ** 2 for answer in fresh])
        for name, one in [("default", DEFAULT), ("fitted", weights)]
    }
    assert loss["fitted"] < loss["default"] - 0.01


def test_a_dry_run_stores_nothing(tmp_path, data):
    assert calibrated(written(tmp_path / "a", graded(200, model="m")), "--dry-run")["file"] is None
    assert not Store(data).all()


def test_the_model_may_be_named_on_the_command_line(tmp_path):
    mixed = graded(100) + graded(60, model="a") + graded(60, model="b")
    file = written(tmp_path / "a", mixed)
    found = calibrated(file, "--model", "a")
    assert (found["model"], found["answers"]) == ("a", 160)
    assert "60 answers of other models" in run("calibrate", file, "--model", "a").output
    assert "2 models" in refused(file).message
    assert "do not say" in refused(written(tmp_path / "b", graded(100))).message


def test_answers_of_another_model_are_no_use(tmp_path):
    error = refused(written(tmp_path / "a", graded(100, model="a")), "--model", "c")
    assert "has no answer of c" in error.message
    assert "a" in error.suggestions[0]


@pytest.mark.parametrize(("right", "wrong"), [(0, 200), (200, 14), (30, 19)])
def test_too_few_answers_are_refused(tmp_path, right, wrong):
    lines = [{"factors": dict.fromkeys(NAMES, 0.1), "correct": n < right, "model": "m"} for n in range(right + wrong)]
    assert f"{right} right and {wrong} wrong" in refused(written(tmp_path / "a", lines)).message


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nonsense", "line 2: this is no JSON object"),
        ("[1]", "line 2: this is no JSON object (but list)"),
        ('{"correct": true}', "line 2: factors: field required"),
        ('{"factors": {"weakest": 0.5}}', "line 2: correct: field required"),
        ('{"factors": {"weakest": "high"}, "correct": true}', "line 2: factors.weakest"),
        ('{"factors": {"weakest": NaN}, "correct": true}', "line 2: factors.weakest"),
        ('{"factors": {}, "correct": true}', "line 2: factors"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, told):
    file = tmp_path / "a"
    file.write_text(f"{json.dumps(graded(1)[0])}\n{line}\n")
    assert told in refused(file).message


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(tmp_path / "a").message


def test_factors_that_are_missing_are_named(tmp_path):
    lines = [{"factors": {"weakest": 0.5}, "correct": True, "model": "m"}] * 60
    assert "'news'" in refused(written(tmp_path / "a", lines)).message


def test_models_without_weights_are_not_shown_or_forgotten():
    for command in ("show", "forget"):
        error = run(command, "nobody").exception
        assert isinstance(error, JackfieldError)
        assert "nobody" in error.message


@pytest.mark.parametrize("model", ["../../etc/passwd", "a/b", "..", "ünï", "x" * 400, "con:nul|?*"])
def test_any_model_name_makes_a_file_in_the_folder(tmp_path, data, model):
    calibrated(written(tmp_path / "a", graded(100)), "--model", model)
    store = Store(data)
    assert store.file(model).parent == data / "calibrations"
    assert [file.name for file in store.folder.iterdir()] == [store.file(model).name]
    assert list(store.all()) == [model]


def test_long_names_that_begin_alike_are_told_apart(data):
    store = Store(data)
    assert store.file("x" * 400 + "a") != store.file("x" * 400 + "b")


@pytest.mark.parametrize("damage", ["", "{", '{"model": "m"}', '{"slopes": {"weakest": 1}}'])
def test_a_damaged_file_is_passed_over_with_a_warning(tmp_path, data, caplog, damage):
    calibrated(written(tmp_path / "a", graded(100)), "--model", "good")
    (data / "calibrations" / "m.json").write_text(damage)
    assert list(Store(data).all()) == ["good"]
    assert "m.json cannot be used" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, data):
    data.mkdir(parents=True)
    (data / "calibrations").write_text("in the way")
    assert "cannot be written" in refused(written(tmp_path / "a", graded(100)), "--model", "m").message


def test_the_command_is_there_with_examples():
    result = subprocess.run(
        [sys.executable, "-m", "jackfield", "confidence", "calibrate", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "jackfield confidence calibrate graded.jsonl" in result.stdout
    assert "Exit status" in result.stdout
