"""``jackfield models``: what is here, what is fetched, what is deleted, and what would fit."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner, Result
from mlx_lm.utils import load_model

import gguf_files
from hub_server import COMMIT, FakeHub, serve, use
from jackfield.cli import main
from jackfield.models import quantize as quantizing
from jackfield.models import store
from jackfield.models.inventory import inventory
from jackfield.models.plan import usable_memory
from jackfield.models.quantized import Recipe, recipe
from jackfield.models.recommend import COMFORTABLE, recommend
from jackfield.models.service import model_id
from jackfield.models.sizes import gigabytes
from jackfield.models.sources import resolve
from model_fixtures import random_weights, tiny_config, write_model

NAME = "acme/tiny"
GiB = 2**30


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of the user's."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own retries
    folder = tmp_path / "jackfield"
    for name, value in {"CACHE_DIR": str(folder), "CONFIG": os.devnull, "PLUGINS": "none"}.items():
        monkeypatch.setenv(f"JACKFIELD_{name}", value)
    return folder


@pytest.fixture
def hub(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that has the tiny model."""
    files = {file.name: file.read_bytes() for file in tiny_model.iterdir()}
    with serve(FakeHub({NAME: files}, tags=("mlx", "license:apache-2.0"))) as server:
        use(monkeypatch, server.url)
        yield server


def models(*arguments: str | Path, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)], input=answer)


def facts(*arguments: str | Path, status: int = 0) -> Any:
    result = models(*arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def listed() -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in facts("list")["models"]}


# pull


def test_a_download_that_broke_off_goes_on_where_it_was(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
    whole = len(hub.repositories[NAME]["model.safetensors"])
    hub.ends_at["model.safetensors"] = 6_000_000
    broken = models("pull", NAME)
    assert broken.exit_code == 1
    assert "what was downloaded" in broken.stderr
    (half,) = facts("list")["models"]
    assert half["obstacle"] == "It is not wholly downloaded."
    assert half["bytes"] >= 6_000_000

    hub.ends_at.clear()
    hub.downloads.clear()
    result = models("pull", NAME)
    assert result.exit_code == 0, result.output
    (start,) = (int(line.partition("@")[2]) for line in hub.downloads if line.startswith("model.safetensors"))
    assert whole - start <= whole - 6_000_000, "bytes of the second download"
    assert (resolve(NAME, cache=Path()) / "model.safetensors").read_bytes() == hub.repositories[NAME][
        "model.safetensors"
    ]


def test_it_says_where_a_model_is_and_what_it_takes(hub: FakeHub) -> None:
    result = models("pull", NAME)
    folder = resolve(NAME, cache=Path())
    assert f"{NAME} is here, " in result.stdout
    assert str(folder) in result.stdout
    assert f"Downloading {NAME}" in result.stderr
    hub.downloads.clear()
    (again,) = facts("pull", NAME)
    size = sum(len(data) for data in hub.repositories[NAME].values())
    same = {"name": NAME, "kind": "model", "folder": str(folder), "bytes": size, "base_model": None, "error": None}
    assert again == same
    assert hub.downloads == []


def test_one_that_there_is_not_keeps_no_other_from_being_fetched(hub: FakeHub) -> None:
    result = models("pull", "acme/nothing", NAME)
    assert result.exit_code == 1
    assert "acme/nothing: There is no acme/nothing" in result.stderr
    assert "  - Check the spelling." in result.stderr
    assert f"{NAME} is here" in result.stdout
    missing, found = facts("pull", "acme/nothing", NAME, status=1)
    assert (missing["folder"], found["error"]) == (None, None)


def test_what_the_disk_has_no_room_for_is_not_begun(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 1_000_000))
    result = models("pull", NAME)
    assert result.exit_code == 1
    assert "1.0 MB are free" in result.stderr
    assert hub.downloads == ["config.json@0"]


def test_what_is_here_already_needs_no_more_room(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = len(hub.repositories[NAME]["model.safetensors"])
    hub.ends_at["model.safetensors"] = weights - 1_000_000
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
    assert models("pull", NAME).exit_code == 1
    hub.ends_at.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, weights - 1))
    result = models("pull", NAME)
    assert result.exit_code == 0, result.output


ADAPTER = "acme/sql"
WEIGHTS = bytes(range(256)) * 12_000
ADAPTER_FILES = {
    "adapter_config.json": b'{"base_model_name_or_path": "acme/tiny", "r": 8, "lora_alpha": 16}',
    "adapter_model.safetensors": WEIGHTS,
    "adapter_model.bin": b"pickle",
    "tokenizer.json": b"{}",
}


def test_an_adapter_is_pulled_listed_and_removed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
    hub.repositories[ADAPTER] = ADAPTER_FILES
    hub.ends_at["adapter_model.safetensors"] = 2_000_000
    assert models("pull", ADAPTER).exit_code == 1
    (half,) = facts("list")["models"]
    assert (half["kind"], half["obstacle"]) == ("adapter", "It is not wholly downloaded.")

    hub.ends_at.clear()
    hub.downloads.clear()
    result = models("pull", ADAPTER)
    assert result.exit_code == 0, result.output
    assert "adapter_model.safetensors@2000000" in hub.downloads, "only the rest"
    assert not [name for name in hub.downloads if "bin" in name or "tokenizer" in name]
    assert f"Downloading {ADAPTER}" in result.stderr
    assert f"jackfield serve --model acme/tiny --adapter sql={ADAPTER}" in result.stdout
    (again,) = facts("pull", ADAPTER)
    assert (again["kind"], again["base_model"], again["error"]) == ("adapter", "acme/tiny", None)
    assert (Path(again["folder"]) / "adapter_model.safetensors").read_bytes() == WEIGHTS

    (found,) = facts("list")["models"]
    assert (found["name"], found["kind"], found["base_model"], found["obstacle"]) == (
        ADAPTER,
        "adapter",
        "acme/tiny",
        None,
    )
    assert found["bytes"] == again["bytes"]
    assert f"{ADAPTER} for acme/tiny" in models("list").stdout
    assert models("remove", ADAPTER, "--yes").exit_code == 0
    assert listed() == {}


def test_what_is_no_adapter_and_what_is_no_model(hub: FakeHub) -> None:
    hub.repositories[ADAPTER] = {name: data for name, data in ADAPTER_FILES.items() if "safetensors" not in name}
    assert "is no adapter: it has to hold" in models("pull", ADAPTER).stderr
    info = models("info", ADAPTER)
    assert info.exit_code == 1
    assert "is an adapter, and no model" in info.stderr
    assert listed()[ADAPTER]["obstacle"].startswith("It has no adapters.safetensors")


# list


def test_what_is_here_and_what_becomes_of_it(hub: FakeHub, cache: Path) -> None:
    models("pull", NAME)
    other = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--acme--other" / "snapshots" / COMMIT
    other.mkdir(parents=True)
    (other / "model.gguf").write_bytes(b"GGUF")
    (cache / "prefixes").mkdir(parents=True)
    (cache / "prefixes" / "block.kv").write_bytes(bytes(5000))
    found = listed()
    assert list(found) == [NAME, f"acme/other@{COMMIT}"], "those that can be served first"
    tiny = found[NAME]
    assert (tiny["kind"], tiny["weights_type"], tiny["context_length"], tiny["fits"]) == ("hub", "float32", 4096, True)
    assert f"such as acme/other@{COMMIT}:model.gguf" in found[f"acme/other@{COMMIT}"]["obstacle"]
    assert facts("list")["prefix_cache_bytes"] == 5000
    text = models("list").stdout
    assert "yes" in text
    assert f"acme/other@{COMMIT} cannot be served. It holds GGUF files, which are served by names of their own" in text
    assert "prefix cache 5.0 kB" in text


def test_by_which_names_and_in_which_order(hub: FakeHub, tmp_path: Path) -> None:
    place = Path(huggingface_hub.constants.HF_HUB_CACHE)
    other = "fedcba9876543210fedcba9876543210fedcba98"
    for repository, commit, refs, read in (
        ("models--acme--old", COMMIT, ("main",), 1_000_000),
        ("models--acme--new", COMMIT, ("v2", "v1"), 3_000_000),
        ("models--acme--middle", other, (), 2_000_000),
        ("datasets--acme--data", COMMIT, ("main",), 4_000_000),
    ):
        folder = place / repository / "snapshots" / commit
        for name, data in hub.repositories[NAME].items():
            blob = place / repository / "blobs" / name
            for file in (blob, folder / name):
                file.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            os.utime(blob, (read, read))
            (folder / name).symlink_to(blob)
        for ref in refs:
            (place / repository / "refs").mkdir(exist_ok=True)
            (place / repository / "refs" / ref).write_text(commit)
    found = listed()
    assert list(found) == ["acme/new@v1", f"acme/middle@{other}", "acme/old"]
    assert [model["used"] for model in found.values()] == [3_000_000, 2_000_000, 1_000_000]


def test_nothing_is_here(cache: Path) -> None:
    assert "jackfield models recommend" in models("list").stdout


# remove


def test_a_model_of_the_hubs_is_deleted_when_one_says_yes(hub: FakeHub) -> None:
    models("pull", NAME)
    folder = resolve(NAME, cache=Path())
    asked = models("remove", NAME, answer="n\n")
    assert asked.exit_code == 1
    assert NAME in asked.stdout
    assert folder.exists()
    result = models("remove", NAME, answer="y\n")
    assert result.exit_code == 0, result.output
    size = sum(len(data) for data in hub.repositories[NAME].values())
    assert f"{size / 1e6:.1f} MB are free again" in result.stdout
    assert not folder.exists()
    assert listed() == {}


def test_a_commit_can_be_named(hub: FakeHub) -> None:
    models("pull", NAME)
    assert models("remove", f"{NAME}@fedcba", "--yes").exit_code == 1
    assert models("remove", f"{NAME}@{COMMIT[:8]}", "--yes").exit_code == 0
    assert listed() == {}


def test_what_is_the_users_own_is_left_alone(tiny_model: Path, cache: Path) -> None:
    result = models("remove", tiny_model, "--yes")
    assert result.exit_code == 1
    assert "is yours" in result.stderr
    assert (tiny_model / "config.json").exists()
    assert "There is no acme/nothing" in models("remove", "acme/nothing", "--yes").stderr


def test_of_a_gguf_file_the_conversion_goes_and_the_file_stays(tmp_path: Path, cache: Path) -> None:
    config = tiny_config("qwen2", len(gguf_files.VOCABULARY))
    file = gguf_files.write(tmp_path / "model.gguf", config, random_weights(config))
    os.utime(resolve(str(file), cache=cache) / "config.json", (9e9, 1e9))
    found = listed()[str(file)]
    assert (found["kind"], found["used"]) == ("gguf", 9e9)
    assert f"{gigabytes(found['bytes'])} are free again" in models("remove", file, "--yes").stdout
    assert list((cache / "models").iterdir()) == [], "no lock either"
    assert listed() == {}
    assert file.exists()
    assert "is yours" in models("remove", file, "--yes").stderr


def test_a_starter_that_another_version_made_can_be_removed(cache: Path) -> None:
    old = cache / "models" / "starter-abc-0"
    old.mkdir(parents=True)
    (old / "config.json").write_text('{"model_type": "llama"}')
    assert listed()[old.name]["obstacle"] == "Another version of Jackfield has made it."
    assert models("remove", old.name, "--yes").exit_code == 0
    assert inventory(cache) == []


# info


def test_what_is_known_of_a_model_before_its_weights_are_downloaded(hub: FakeHub) -> None:
    found = facts("info", NAME)
    assert hub.downloads == ["config.json@0"]
    assert (found["downloaded"], found["licence"], found["capabilities"]) == (False, "apache-2.0", None)
    assert found["model_type"] == "qwen2"
    assert {file["name"] for file in found["files"]} == set(hub.repositories[NAME])
    assert found["plan"]["fits"] is True
    assert "known when it has been downloaded" in models("info", NAME).stdout


def test_what_is_known_of_one_that_is_here(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Mine\n")
    found = facts("info", folder)
    assert found["licence"] == "mit"
    assert set(found["capabilities"]) >= {"chat", "tools", "fill_in_the_middle"}
    assert found["disk_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    text = models("info", folder).stdout
    assert "Can do" in text
    assert "model.safetensors" in text
    assert models("info", tmp_path / "nothing").exit_code == 1


# quantize


def test_a_quantized_copy_is_served_by_its_name(hub: FakeHub, cache: Path) -> None:
    result = models("quantize", NAME, "--bits", "4", "--group-size", "32")
    assert result.exit_code == 0, result.output
    name = f"{NAME}:4bit-g32"
    assert f"jackfield serve --model {name}" in result.stdout
    folder = resolve(name, cache=cache)
    model, config = load_model(folder)
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert model.model.layers[0].mlp.up_proj.bits == 4
    assert {file.name for file in folder.iterdir()} >= {"tokenizer.json", "tokenizer_config.json", "config.json"}
    found = listed()[name]
    assert (found["kind"], found["weights_type"]) == ("quantized", "4-bit")
    assert facts("info", name)["downloaded"] is True
    assert models("remove", name, "--yes").exit_code == 0
    assert set(listed()) == {NAME}


def test_a_model_that_has_changed_is_quantized_again(tmp_path: Path, cache: Path) -> None:
    source = checkpoint(tmp_path / "source", hidden_size=64)
    assert models("quantize", source).exit_code == 0
    folder = resolve(f"{source}:4bit", cache=cache)
    weights = folder / "model-00001.safetensors"
    made, before = weights.stat().st_mtime_ns, weights.read_bytes()
    assert "has changed" not in models("quantize", source).stderr
    assert weights.stat().st_mtime_ns == made, "nothing is done twice"
    write_model(source, config := json.loads((source / "config.json").read_text()), random_weights(config, 7))
    again = models("quantize", source)
    assert (again.exit_code, "has changed since it was quantized" in again.stderr) == (0, True)
    assert (anew := weights.read_bytes()) != before
    (source / "model.safetensors").write_bytes(b"damaged")
    assert models("quantize", source).exit_code == 1
    assert weights.read_bytes() == anew, "the copy stays until there is a new one"


def test_a_copy_needs_the_model_it_was_made_from_no_longer(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "source", hidden_size=64)
    monkeypatch.chdir(tmp_path)
    assert models("quantize", "./source").exit_code == 0
    shutil.rmtree(source)
    assert facts("info", "./source:4bit")["downloaded"] is True
    monkeypatch.chdir("/")
    assert list(listed()) == [f"{source}:4bit"]
    assert facts("info", f"{source}:4bit")["downloaded"] is True
    assert models("remove", "./source:4bit", "--yes").exit_code == 1, "that is another one here"
    monkeypatch.chdir(tmp_path)
    assert models("remove", "./source:4bit", "--yes").exit_code == 0
    assert not listed()


def test_a_table_of_the_settings_is_a_name(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text(f'model = "coder"\n[models.coder]\nsource = "{tiny_model}"\ncontext_length = 512')
    found = facts("info", "coder", "--config", file)
    assert (found["folder"], found["plan"]["context_length"]) == (str(tiny_model), 512)


def test_a_folder_and_a_new_one(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "new" / "model-8bit"
    result = models("quantize", tiny_model, "--bits", "8", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"jackfield serve --model {out}" in result.stdout
    assert list(out.parent.iterdir()) == [out], "nothing is left beside it"
    assert load_model(out)[1]["quantization"]["bits"] == 8
    assert not cache.exists()
    assert "is there already" in models("quantize", tiny_model, "--out", out).stderr
    again = models("quantize", out)
    assert again.exit_code == 1
    assert "is quantized already, to 8 bits" in again.stderr


def test_an_embedding_model_keeps_how_it_pools(tiny_embedder: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / tiny_embedder.name
    assert models("quantize", tiny_embedder, "--out", out).exit_code == 0
    kept = Path("1_Pooling", "config.json")
    assert (out / kept).read_bytes() == (tiny_embedder / kept).read_bytes()
    assert "embeddings" in facts("info", out)["capabilities"]
    assert not (out / "jackfield.json").exists()


def test_weights_are_written_in_several_files_if_they_are_large(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "SHARD_GB", 0)
    source = checkpoint(tmp_path / "source", hidden_size=64)
    assert models("quantize", source, "--out", tmp_path / "out").exit_code == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 5
    assert load_model(tmp_path / "out")[1]["quantization"]["bits"] == 4


def test_what_cannot_be_quantized(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = checkpoint(tmp_path / "narrow", hidden_size=48, intermediate_size=48, head_dim=12)
    result = models("quantize", narrow, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "None of the layers" in result.stderr
    wide = checkpoint(tmp_path / "wide", hidden_size=64)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 10))
    assert "Too little space" in models("quantize", wide, "--out", tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()


def checkpoint(folder: Path, **changes: int) -> Path:
    config = tiny_config("qwen2", 128, **changes)
    folder.mkdir()
    write_model(folder, config, random_weights(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/name:4bit", Recipe("org/name", 4)),
        ("org/name@v1:8bit-g32", Recipe("org/name@v1", 8, 32)),
        ("./model:6bit", Recipe("./model", 6)),
        ("org/name-4bit", None),
        ("org/name:7bit", None),
        ("org/name:4bit-g16", None),
    ],
)
def test_names_of_quantized_copies(name: str, found: Recipe | None) -> None:
    assert recipe(name) == found
    assert found is None or found.name == name


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert model_id("./model:4bit") == "model:4bit"
    (tmp_path / "model:4bit").mkdir()
    assert recipe("./model:4bit") is None


def test_what_has_not_been_quantized_yet_is_told_how(cache: Path) -> None:
    result = models("info", "org/name:8bit-g32")
    assert result.exit_code == 1
    assert "jackfield models quantize org/name --bits 8 --group-size 32" in result.stderr


# recommend


@pytest.mark.parametrize(
    ("memory", "device", "best"),
    [
        ("16GB", "metal", "Qwen2.5-Coder-14B-Instruct-4bit"),
        ("36GB", "metal", "Qwen2.5-Coder-32B-Instruct-4bit"),
        ("64GB", "metal", "Qwen2.5-Coder-32B-Instruct-8bit"),
    ],
)
def test_the_largest_that_fits_with_a_comfortable_context_comes_first(memory: str, device: str, best: str) -> None:
    found = facts("recommend", "--memory", memory, "--device", device)
    assert found[0]["model"] == f"mlx-community/{best}"
    assert found[0]["context_length"] >= COMFORTABLE
    for one in found:
        assert one["weights_bytes"] + one["sequence_bytes"] <= one["total_bytes"]


def test_a_cpu_gets_what_it_need_not_read_whole_for_each_token() -> None:
    usable = usable_memory("cpu", 32 * GiB)
    first, *others = recommend("cpu", usable)
    assert "A3B" in first.repository
    assert "at work for a token" in first.why
    slow = [one for one in others if not one.fast]
    assert slow
    assert others[-len(slow) :] == slow, "those that are slow come last"
    assert all("slow on a CPU" in one.why for one in slow)


def test_people_get_a_table_and_a_command() -> None:
    result = models("recommend", "--memory", "36GB", "--device", "metal")
    assert "Qwen2.5-Coder-32B-Instruct-4bit" in result.stdout
    assert len(result.stdout.splitlines()) < 30
    assert "jackfield serve --preset qwen2.5-coder-32b" in result.stdout
    assert "Qwen3-0.6B" not in result.stdout
    assert "Qwen3-0.6B" in models("recommend", "--memory", "36GB", "--device", "metal", "--all").stdout


def test_nothing_fits() -> None:
    result = models("recommend", "--memory", "500MB", "--device", "metal")
    assert result.exit_code == 3
    assert "starter" in result.stdout
