"""GGUF files from the Hugging Face Hub, here one in memory: named, downloaded, converted, listed and removed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import mlx.core as mx
import pytest
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType
from mlx_lm.utils import load_model

import gguf_files
import serving
from hub_server import FakeHub, serve, use
from jackfield.cli import main
from jackfield.errors import ModelLoadError
from jackfield.models import hub_gguf
from jackfield.models.gguf import GGUF, GGUFError
from jackfield.models.gguf_names import parts_of, pick, quantizations
from jackfield.models.hub_gguf import HubGGUF, means
from jackfield.models.service import model_id
from jackfield.models.sources import SOURCES, resolve
from logits import same_logits
from model_fixtures import random_weights, tiny_config

NAME = "acme/tiny-GGUF"
CONFIG = tiny_config("qwen2", len(gguf_files.VOCABULARY), hidden_size=256, intermediate_size=512, head_dim=64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the repository holds: one model quantized, and the same whole and in parts."""
    folder, weights = tmp_path_factory.mktemp("gguf"), random_weights(CONFIG)
    gguf_files.write(folder / "tiny-Q8_0.gguf", CONFIG, weights, GGMLQuantizationType.Q8_0)
    gguf_files.write(folder / "tiny-F16.gguf", CONFIG, weights, GGMLQuantizationType.F16)
    gguf_files.write(folder / "tiny-F32.gguf", CONFIG, weights, split=10)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    split = {f"whole/{name}": data for name, data in found.items() if "-of-" in name}
    others = {"mmproj-F16.gguf": b"GGUF", "README.md": b"A model.", "tiny-BF16.gguf": b"GGUF"}
    return {name: data for name, data in found.items() if "-of-" not in name} | split | others


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of the user's."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own retries
    for name, value in {"CACHE_DIR": str(tmp_path / "own"), "CONFIG": "/dev/null", "PLUGINS": "none"}.items():
        monkeypatch.setenv(f"JACKFIELD_{name}", value)
    return tmp_path / "own"


@pytest.fixture
def hub(files: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve(FakeHub({NAME: dict(files)}, tags=("license:mit",))) as server:
        use(monkeypatch, server.url)
        yield server


def models(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", *arguments])


def facts(*arguments: str) -> Any:
    result = models(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def listed() -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in facts("list")["models"]}


def answer(folder: Path) -> mx.array:
    logits: mx.array = load_model(folder)[0](mx.array([[1, 2, 3]]))
    return logits


# names


FILES = [
    "BF16/m-BF16-00001-of-00002.gguf",
    "BF16/m-BF16-00002-of-00002.gguf",
    "m-BF16.gguf.part",
    "m-F16.gguf",
    "m-IQ4_NL.gguf",
    "m-UD-Q4_K_M.gguf",
    "m-q4_k_m.gguf",
    "m.Q4_0.gguf",
    "mmproj-Q8_0.gguf",
]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("Q4_K_M", "m-q4_k_m.gguf"),
        ("q4_k_m", "m-q4_k_m.gguf"),
        ("UD-Q4_K_M", "m-UD-Q4_K_M.gguf"),
        ("Q4_0", "m.Q4_0.gguf"),
        ("F16", "m-F16.gguf"),
        ("BF16", "BF16/m-BF16-00001-of-00002.gguf"),
        ("bf16/M-BF16-00002-of-00002.gguf", "BF16/m-BF16-00001-of-00002.gguf"),
        ("m-F16.gguf", "m-F16.gguf"),
        ("F16.gguf", None),
        ("Q8_0", None),
        ("Q4", None),
        (".*", None),
    ],
)
def test_which_file_is_meant(asked: str, found: str | None) -> None:
    assert pick(FILES, asked) == found


def test_what_there_is_to_choose_from() -> None:
    assert pick(["m-BF16.gguf"], "F16") is None
    assert quantizations([*FILES, "model-v1.5.gguf"]) == ["BF16", "F16", "IQ4_NL", "Q4_0", "Q4_K_M"]
    assert parts_of("m-00001-of-00000.gguf") == ["m-00001-of-00000.gguf"]


@pytest.mark.parametrize("name", ["org/name:Q4_K_M", "org/name@main:a/b c-00001-of-00002.gguf", "org/name:m.gguf"])
def test_names_on_the_hub(name: str) -> None:
    source = next(source for source in SOURCES if source.matches(name))
    assert isinstance(source, HubGGUF)
    assert model_id(name) == name


@pytest.mark.parametrize(
    "name",
    ["a/b:4bit", "a/b:", "a/b:../x.gguf", "./b:Q4_0", "a/b:/etc/passwd", "a/b/c:Q4_0", "a/b:x:y", "a/b: ", "a/b:x\x00"],
)
def test_names_of_something_else(name: str) -> None:
    assert not HubGGUF().matches(name)


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name:m.gguf").touch()
    assert not HubGGUF().matches("org/name:m.gguf")


def test_two_names_for_one_file() -> None:
    assert means("org/name:Q8_0", "org/name:tiny-Q8_0.gguf")
    assert not means("org/name:Q8_0", "org/name:tiny-F16.gguf")
    assert not means("org/name@v1:Q8_0", "org/name:tiny-Q8_0.gguf")
    assert not means("org/other:Q8_0", "org/name:tiny-Q8_0.gguf")


# download


def test_one_is_pulled_listed_served_and_removed(hub: FakeHub, cache: Path) -> None:
    name = f"{NAME}:q8_0"
    result = models("pull", name)
    assert result.exit_code == 0, result.output
    assert f"{name} is here, " in result.stdout
    assert f"Downloading {name}" in result.stderr
    assert "Converting tiny-Q8_0.gguf" in result.stderr
    assert hub.downloads == ["tiny-Q8_0.gguf@0", "README.md@0", "tiny-Q8_0.gguf@0"], "the header first, and no others"
    hub.downloads.clear()
    folder = resolve(name, cache=cache)
    assert resolve(f"{NAME}:tiny-Q8_0.gguf", cache=cache) == folder
    assert hub.downloads == []
    assert load_model(folder)[1]["quantization"]["bits"] == 8

    found = listed()
    assert (found[name]["kind"], found[name]["weights_type"], found[name]["fits"]) == ("gguf", "8-bit", True)
    assert f"{NAME}:tiny-Q8_0.gguf" in found[NAME]["obstacle"], "the download"
    assert models("remove", NAME, "--yes").exit_code == 0
    assert set(listed()) == {name}
    assert resolve(name, cache=cache) == folder
    assert hub.downloads == [], "what has been converted is not downloaded again"
    assert models("remove", f"{NAME}:tiny-Q8_0.gguf", "--yes").exit_code == 0
    assert listed() == {}


def test_a_download_that_broke_off_goes_on_where_it_was(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500_000)
    hub.ends_at["tiny-F16.gguf"] = 1_500_000
    broken = models("pull", f"{NAME}:F16")
    assert broken.exit_code == 1
    assert "what was downloaded" in broken.stderr
    half = listed()[NAME]
    assert (half["obstacle"], half["bytes"] >= 1_500_000) == ("It is not wholly downloaded.", True)
    hub.ends_at.clear()
    hub.downloads.clear()
    assert models("pull", f"{NAME}:F16").exit_code == 0
    assert [one for one in hub.downloads if int(one.partition("@")[2]) > 0] == ["tiny-F16.gguf@1500000"]


def test_a_split_one_comes_with_all_its_parts(hub: FakeHub, cache: Path, tmp_path: Path) -> None:
    folder = resolve(f"{NAME}:F32", cache=cache)
    assert sorted(hub.downloads)[1:] == [f"whole/tiny-F32-0000{number}-of-00003.gguf@0" for number in (1, 2, 3)]
    whole = gguf_files.write(tmp_path / "whole.gguf", CONFIG, random_weights(CONFIG))
    assert same_logits(answer(folder), answer(resolve(str(whole), cache=cache)))
    assert resolve(f"{NAME}:whole/tiny-F32-00002-of-00003.gguf", cache=cache) == folder


def test_without_network(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online = resolve(f"{NAME}:Q8_0", cache=cache)
    use(monkeypatch, "http://127.0.0.1:9")
    assert resolve(f"{NAME}:Q8_0", cache=cache) == online
    assert models("remove", f"{NAME}:Q8_0", "--yes").exit_code == 0
    assert resolve(f"{NAME}:Q8_0", cache=cache) == online, "made again from the download"
    assert models("remove", NAME, "--yes").exit_code == 0
    assert resolve(f"{NAME}:Q8_0", cache=cache) == online, "and needing it no more"
    with pytest.raises(ModelLoadError, match="cannot be reached"):
        resolve(f"{NAME}:F16", cache=cache)


def test_without_network_and_with_some_of_the_parts(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(resolve(f"{NAME}:F32", cache=cache))
    next(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("tiny-F32-00003-of-00003.gguf")).unlink()
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ModelLoadError, match="cannot be reached"):
        resolve(f"{NAME}:F32", cache=cache)


def test_a_file_that_has_changed_is_converted_again(hub: FakeHub, cache: Path) -> None:
    before = resolve(f"{NAME}:Q8_0", cache=cache)
    hub.repositories[NAME]["tiny-Q8_0.gguf"] += bytes(32)
    # The commit is the same in this Hub, and the client takes that for the same file.
    assert models("remove", NAME, "--yes").exit_code == 0
    after = resolve(f"{NAME}:Q8_0", cache=cache)
    assert after != before
    assert not before.exists()


def test_what_is_not_there(hub: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelLoadError, match="no GGUF file 'Q2_K'") as caught:
        resolve(f"{NAME}:Q2_K", cache=cache)
    assert caught.value.suggestions == ("Take one of these: BF16, F16, F32, Q8_0.",)
    with pytest.raises(ModelLoadError, match="There is no acme/nothing"):
        resolve("acme/nothing:Q8_0", cache=cache)
    del hub.repositories[NAME]["whole/tiny-F32-00003-of-00003.gguf"]
    with pytest.raises(ModelLoadError, match="not all parts of whole/tiny-F32"):
        resolve(f"{NAME}:F32", cache=cache)
    assert hub.downloads == []


def test_it_is_served_by_that_name(hub: FakeHub, tmp_path: Path) -> None:
    places = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "JACKFIELD_CACHE_DIR": str(tmp_path / "own"),
    }
    name = f"{NAME}:Q8_0"
    with serving.serve(name, **places) as server:
        assert server.model == name
        body = {"model": name, "prompt": "the", "max_tokens": 2, "ignore_eos": True}
        found = httpx2.post(f"{server.api}/completions", json=body, timeout=60).json()
        assert (found["model"], found["usage"]["completion_tokens"]) == (name, 2)
        assert httpx2.get(f"{server.api}/models/{name}").json()["id"] == name


# before it is downloaded


@pytest.mark.parametrize("tag", ["Q8_0", "F32"])
def test_what_its_header_says(hub: FakeHub, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_gguf, "HEADER_BYTES", 50_000)
    size = sum(len(data) for name, data in hub.repositories[NAME].items() if f"-{tag}" in name)
    found = facts("info", f"{NAME}:{tag}")
    assert (found["downloaded"], found["licence"], found["model_type"]) == (False, "mit", "qwen2")
    parameters = sum(weight.size for weight in random_weights(CONFIG).values())
    assert (found["parameters"], found["disk_bytes"]) == (parameters, 2 * size)
    assert facts("list")["models"] == [], "nothing is left behind"


def test_what_the_disk_has_no_room_for_is_not_begun(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 1_000_000))
    result = models("pull", f"{NAME}:F16")
    assert result.exit_code == 1
    assert "1.0 MB are free" in result.stderr


# parts on this machine


def test_parts_in_a_folder_are_one_model(tmp_path: Path, cache: Path) -> None:
    first = gguf_files.write(tmp_path / "tiny.gguf", CONFIG, random_weights(CONFIG), split=10)
    last = tmp_path / "tiny-00003-of-00003.gguf"
    with GGUF(last) as file:
        assert file.path == first
        assert "output_norm.weight" in file.tensors
    folder = resolve(str(last), cache=cache)
    assert resolve(str(first), cache=cache) == folder
    assert models("remove", str(last), "--yes").exit_code == 0
    last.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(GGUFError, match="incomplete: 1 parts are missing, for example tiny-00003"):
        resolve(str(first), cache=cache)
    first.rename(tmp_path / "alone.gguf")
    with pytest.raises(GGUFError, match="one of 3 parts"):
        resolve(str(tmp_path / "alone.gguf"), cache=cache)


def test_parts_of_two_models_are_none(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    first = gguf_files.write(tmp_path / "a.gguf", CONFIG, weights, split=14)
    other = gguf_files.write(tmp_path / "b.gguf", CONFIG, dict(list(weights.items())[:-1]), split=14)
    other.with_name("b-00002-of-00002.gguf").rename(tmp_path / "a-00002-of-00002.gguf")
    with pytest.raises(GGUFError, match="do not belong together"), GGUF(first):
        pass
