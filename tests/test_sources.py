"""From a model's name to its folder, whatever goes wrong on the way."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import gguf_files
from jackfield.errors import ModelLoadError
from jackfield.models import gguf_source, store
from jackfield.models.device import Device
from jackfield.models.loading import load_network
from jackfield.models.progress import SILENT
from jackfield.models.sources import resolve
from jackfield.models.store import build_once, require_space
from jackfield.models.tokenizer import Tokenizer
from logits import same_logits
from model_fixtures import random_weights, tiny_config, write_config, write_model

SPAWN = multiprocessing.get_context("spawn")


def failure(name: str | Path, cache: Path) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        resolve(str(name), cache=cache)
    assert caught.value.suggestions
    return caught.value


# Names


@pytest.mark.parametrize("name", ["", "gpt2", "a b", "org/name@../../x", "https://huggingface.co/a/b", "\0"])
def test_a_name_that_no_source_knows(name: str, tmp_path: Path) -> None:
    assert "not the name of a model" in failure(name, tmp_path).message


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing", "~/nothing-here"])
def test_a_path_that_does_not_exist(name: str, tmp_path: Path) -> None:
    assert "does not exist" in failure(name, tmp_path).message


def test_a_folder_is_served_where_it_is(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tiny_model), cache=tmp_path) == tiny_model
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir(tiny_model.parent)
    assert resolve(tiny_model.name, cache=tmp_path).samefile(tiny_model)


def test_a_folder_wins_over_a_repository_of_its_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name", cache=tmp_path).samefile(tmp_path / "org" / "name")


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model, to take things from."""
    config = tiny_config("llama", 32)
    write_model(tmp_path, config, random_weights(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def replace_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def add_index(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: write_config(folder, {"hidden_size": 1}), "model_type"),
        (lambda folder: write_config(folder, {"model_type": "llama", "model_file": "evil.py"}), "own code (evil.py)"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model*.safetensors"),
        (replace_weights, "can hold code"),
        (add_index, "model-00001-of-00002.safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "index.json cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    ],
)
def test_a_folder_that_is_not_whole(change: Callable[[Path], object], message: str, folder: Path) -> None:
    change(folder)
    assert message in failure(folder, folder).message


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("x")
    error = failure(tmp_path / "model.bin", tmp_path)
    assert "is a file" in error.message
    assert ".gguf" in error.suggestions[1]


# GGUF files


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    config = tiny_config("qwen2", len(gguf_files.VOCABULARY))
    return gguf_files.write(tmp_path / "my model.gguf", config, random_weights(config))


def test_a_gguf_file_is_converted_once(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(str(gguf_file), cache=tmp_path / "cache")
    assert first.is_relative_to(tmp_path / "cache" / "models")
    monkeypatch.setattr(gguf_source, "convert", None)
    assert resolve(str(gguf_file), cache=tmp_path / "cache") == first


def test_a_changed_gguf_file_is_converted_again_and_the_old_folder_goes(gguf_file: Path, tmp_path: Path) -> None:
    first = resolve(str(gguf_file), cache=tmp_path / "cache")
    os.utime(gguf_file, ns=(1, 1))
    second = resolve(str(gguf_file), cache=tmp_path / "cache")
    assert second != first
    assert not first.exists()


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in failure(tmp_path / "no.gguf", tmp_path).message
    assert "cannot be read" in failure("org/repository/file.gguf", tmp_path).message
    (tmp_path / "folder.gguf").mkdir()
    assert "cannot be read" in failure(tmp_path / "folder.gguf", tmp_path).message


def test_a_name_of_a_gguf_file_cannot_lead_out_of_the_cache(gguf_file: Path, tmp_path: Path) -> None:
    odd = tmp_path / "..gguf"
    shutil.copy(gguf_file, odd)
    folder = resolve(str(odd), cache=tmp_path / "cache")
    assert folder.resolve().parent == tmp_path / "cache" / "models"


def test_nothing_is_left_of_a_conversion_that_fails(gguf_file: Path, tmp_path: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:-1])
    failure(gguf_file, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []


# The cache


def slowly(folder: Path) -> None:
    """A build that shows where it is, then takes its time."""
    (folder / "half").write_text("done")
    (folder.parent / "started").touch()
    time.sleep(60)


def build_slowly(target: Path) -> None:
    build_once(target, slowly, SILENT)


def test_a_process_killed_while_it_builds_leaves_no_model(tmp_path: Path) -> None:
    target = tmp_path / "model"
    process = SPAWN.Process(target=build_slowly, args=(target,))
    process.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not target.exists()
    build_once(target, lambda folder: (folder / "whole").touch() or None, SILENT)
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.lock", "started"}


def resolve_and_report(name: str, cache: Path, queue: Any) -> None:
    """In another process: how often it converted, and what came out."""
    calls = []
    original = gguf_source.convert

    def convert(path: Path, folder: Path, progress: Any) -> None:
        calls.append(path)
        time.sleep(0.5)  # so that both processes are at it together
        original(path, folder, progress)

    gguf_source.convert = convert
    queue.put((len(calls), str(resolve(name, cache=cache)), len(calls)))


def test_two_processes_at_once_convert_once(gguf_file: Path, tmp_path: Path) -> None:
    queue = SPAWN.Queue()
    arguments = (str(gguf_file), tmp_path / "cache", queue)
    processes = [SPAWN.Process(target=resolve_and_report, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    reports = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({path for _, path, _ in reports}) == 1
    assert sum(after for _, _, after in reports) == 1


def test_waiting_for_another_process_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Progress:
        @contextmanager
        def task(self, description: str, total: int | None = None) -> Iterator[Any]:
            shown.append(description)
            monkeypatch.setattr(store, "_try_lock", lambda descriptor: True)  # the other one has finished
            yield None

    monkeypatch.setattr(store, "_try_lock", lambda descriptor: False)
    build_once(tmp_path / "model", lambda folder: None, Progress())
    assert shown == ["Waiting for another process that prepares model"]


def test_a_read_only_cache_is_told(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    error = failure(gguf_file, tmp_path / "cache")
    assert "cannot be written" in error.message
    assert any("JACKFIELD_CACHE_DIR" in suggestion for suggestion in error.suggestions)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written"), (errno.EIO, "cannot be prepared")],
)
def test_what_the_disk_refuses_is_told(number: int, message: str, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(ModelLoadError, match=message) as caught:
        build_once(tmp_path / "model", build, SILENT)
    assert caught.value.suggestions
    assert not (tmp_path / "model").exists()


def test_too_little_space_is_told_beforehand(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="are needed"):
        require_space(tmp_path, 2**60)


def test_what_is_there_needs_no_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(store, "_lock", None)
    assert build_once(tmp_path / "model", slowly, SILENT) == tmp_path / "model"


# The starter


def test_the_starter_knows_the_capital_of_france(starter: Path, device: Device) -> None:
    network = load_network(starter, device)
    tokenizer = Tokenizer(starter)
    ids = tokenizer.encode("The capital of France is")
    answer = []
    for _ in range(2):
        answer.append(int(mx.argmax(network.model(mx.array([ids + answer]))[0, -1])))
    assert tokenizer.decode(answer) == " Paris."
    assert network.context_length == 8192


def test_the_starter_as_qwen_computes_the_same(starter: Path, qwen2_starter: Path, device: Device) -> None:
    prompt = mx.array([[1, 4093, 198, 19556, 2, 198]])
    expected, found = (load_network(folder, device).model(prompt) for folder in (starter, qwen2_starter))
    assert same_logits(found, expected)


def test_the_starter_comes_with_its_sampling(starter: Path) -> None:
    found = json.loads((starter / "generation_config.json").read_text())
    assert (found["temperature"], found["top_p"], found["top_k"]) == (0.2, 0.9, 50)


# Token ids that Hugging Face's own tokenizer gives.
def test_the_starters_tokens(starter: Path) -> None:
    tokenizer = Tokenizer(starter)
    assert tokenizer.encode("<|im_start|>user\n") == [1, 4093, 198]
    assert len(tokenizer.encode("2026")) == 4
    text = "def f(x):\n\treturn 'naïve 你好 👍'  # 10%\r\n\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
