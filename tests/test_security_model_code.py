"""Models may come with code of their own, for transformers or for mlx-lm. It is never run."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from jackfield.errors import ModelLoadError
from jackfield.models.architecture import from_folder
from jackfield.models.device import REFERENCE, Device
from jackfield.models.loading import load_network
from jackfield.models.tokenizer import Tokenizer
from jackfield.testing.tokenizer import write
from model_fixtures import random_weights, tiny_config, write_model

CPU = Device("cpu", "test", 2**40, REFERENCE)
CODE = """\
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
class Own: ...
Model = ModelArgs = Own
"""
OWN_TOKENIZER = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}}
OWN_NETWORK = {
    "auto_map": {
        "AutoConfig": "configuration_own.Own",
        "AutoModelForCausalLM": "modeling_own.Own",
        "AutoTokenizer": "tokenization_own.Own",
    }
}
UNKNOWN = {"model_type": "own"}


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that can be loaded, beside code, on a terminal where somebody says yes to everything."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = tiny_config("qwen3", 64)
    write_model(folder, config, random_weights(config))
    write(folder)
    for name in ("tokenization_own", "configuration_own", "modeling_own", "own"):
        (folder / f"{name}.py").write_text(CODE)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def add(file: Path, fields: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("class_name", ["PreTrainedTokenizerFast", "Own", None])
@pytest.mark.parametrize("network", [{}, OWN_NETWORK], ids=["network of a kind", "network of its own"])
def test_what_is_known_without_its_code_is_loaded(whole: Path, class_name: str | None, network: dict[str, Any]) -> None:
    add(whole / "tokenizer_config.json", {**OWN_TOKENIZER, "tokenizer_class": class_name})
    add(whole / "config.json", network)
    tokenizer = Tokenizer(whole)
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert load_network(whole, CPU).config["model_type"] == "qwen3"
    assert from_folder(whole).vocabulary == 64
    assert not (whole / "ran").exists()


@pytest.mark.parametrize(
    "place",
    ["tokenization_own.Own", "acme/code--tokenization_own.Own", "../tokenization_own.Own"],
    ids=["file", "repository", "path"],
)
def test_a_tokenizer_that_is_code_is_refused(whole: Path, place: str) -> None:
    add(whole / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [place, None]}, "tokenizer_class": "Own"})
    add(whole / "config.json", OWN_NETWORK | UNKNOWN)
    with pytest.raises(ModelLoadError, match="not run here") as caught:
        Tokenizer(whole)
    assert "trust" not in caught.value.message + "".join(caught.value.suggestions)
    assert not (whole / "ran").exists()


@pytest.mark.parametrize(
    "fields",
    [OWN_NETWORK | UNKNOWN, {"model_file": "own.py"}, {"model_file": "../own.py"}, {"model_file": "own.py"} | UNKNOWN],
    ids=["for transformers", "for mlx-lm", "elsewhere", "for mlx-lm, of an unknown type"],
)
def test_a_network_that_is_code_is_refused(whole: Path, fields: dict[str, Any]) -> None:
    (whole.parent / "own.py").write_text(CODE)
    add(whole / "config.json", fields)
    for load in (lambda: load_network(whole, CPU), lambda: from_folder(whole)):
        with pytest.raises(ModelLoadError) as caught:
            load()
        assert caught.value.suggestions
    with pytest.raises(ModelLoadError, match="not run here"):
        load_network(whole, CPU)
    assert not (whole / "ran").exists()
    assert not (whole.parent / "ran").exists()


@pytest.mark.parametrize("name", ["own", "..own", "own.py", "/own", "mlx_lm.utils"])
def test_a_type_names_no_file(whole: Path, name: str) -> None:
    add(whole / "config.json", {"model_type": name})
    with pytest.raises(ModelLoadError):
        load_network(whole, CPU)
    assert not (whole / "ran").exists()
