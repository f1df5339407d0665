"""kill -9 at any moment: the next process finds nothing damaged, keeps what was promised, and clears away the rest."""

import hashlib
import http.client
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from caller import ask, post

import gguf_files
from gguf_files import VOCABULARY
from model_fixtures import random_weights, tiny_config
from prompts import WORDS
from serving import Server, serve

ROUNDS = 6
DISK_BYTES = 64 << 20


# --- A server at work ------------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_at_work(tiny_model: Path, tmp_path: Path) -> None:
    """In the middle of streams, requests, stored responses and writes to the disk cache, again and again."""
    chance = random.Random(9)
    questions = [" ".join(chance.choices(WORDS, k=900)) for _ in range(6)]
    with serve(tiny_model) as fresh:
        expected = [answer(fresh, question)[0] for question in questions]
    kept: dict[str, str] = {}
    cached = 0
    for _ in range(ROUNDS):
        with serve(tiny_model, **places(tmp_path)) as server:
            answers = [answer(server, question) for question in questions]
            assert [text for text, _ in answers] == expected
            cached += sum(tokens for _, tokens in answers)
            assert all(ask(server, "GET", f"/v1/responses/{one}")[1].decode() == text for one, text in kept.items())
            busy = [threading.Thread(target=keep_busy, args=(server, worker, kept)) for worker in range(4)]
            for thread in busy:
                thread.start()
            known = len(kept)
            while len(kept) == known:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
            server.process.kill()
            for thread in busy:
                thread.join()
            log = "".join(server.log)
            assert "discarded" not in log, "half a block is never under its own name"
            assert "damaged" not in log
    leftovers = list(tmp_path.rglob("*.tmp"))
    assert len(leftovers) <= ROUNDS, "one that was being written each time"
    assert kept, "no response was stored"
    assert cached, "nothing was found on disk"


def places(folder: Path) -> dict[str, str]:
    """Where a server keeps things, and how much of them."""
    return {
        "JACKFIELD_CACHE_DIR": str(folder / "cache"),
        "JACKFIELD_DATA_DIR": str(folder / "data"),
        "JACKFIELD_PREFIX_CACHE_DISK_BYTES": str(DISK_BYTES),
        # So that blocks are soon written to the disk, and read from there.
        "JACKFIELD_PREFIX_CACHE_BYTES": str(1 << 20),
    }


def answer(server: Server, question: str) -> tuple[str, int]:
    """What is said, and how many tokens of the question were known."""
    body = {"prompt": question, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    status, text = post(server, "/v1/completions", body)
    assert status == 200
    document = json.loads(text)
    return document["choices"][0]["text"], document["usage"]["prompt_tokens_details"]["cached_tokens"]


def keep_busy(server: Server, worker: int, kept: dict[str, str]) -> None:
    """Ask for this and that until nobody answers; what was stored goes into ``kept`` once the client knows of it."""
    chance = random.Random(worker)
    with suppress(OSError, http.client.HTTPException):
        while True:
            words = " ".join(chance.choices(WORDS, k=chance.randrange(20, 900)))
            if worker % 2:
                stream(server, {"prompt": words, "max_tokens": 400, "ignore_eos": True, "stream": True})
                continue
            status, text = post(server, "/v1/responses", {"input": words, "store": True, "max_output_tokens": 16})
            if status == 200:
                kept[json.loads(text)["id"]] = text.decode()


def stream(server: Server, body: dict[str, Any]) -> None:
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)) as connection:
        connection.request("POST", "/v1/completions", json.dumps({"model": server.model, **body}))
        with connection.getresponse() as response:
            for _ in response:
                pass


# --- A conversion ----------------------------------------------------------------------------------------------------

CONVERT = """
import sys
from pathlib import Path
from jackfield.models.sources import resolve
print("begins", flush=True)
print(resolve(sys.argv[1], cache=Path(sys.argv[2])), flush=True)
"""


def test_a_conversion_that_is_killed(tmp_path: Path) -> None:
    chance = random.Random(9)
    config = tiny_config("qwen2", len(VOCABULARY), hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
    config["head_dim"] = 512 // config["num_attention_heads"]
    file = gguf_files.write(tmp_path / "model.gguf", config, random_weights(config))
    folder, seconds = converted(file, tmp_path / "undisturbed")
    whole = contents(folder)
    cache, killed = tmp_path / "cache", 0
    for _ in range(ROUNDS):
        with conversion(file, cache) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, seconds))
            process.kill()
        found = models(cache)
        killed += not found
        for folder in found:
            assert contents(folder) == whole, "there is a model, and not all of it"
            shutil.rmtree(folder)
    assert killed, "all were too quick"
    assert contents(converted(file, cache)[0]) == whole
    assert [path.suffix for path in (cache / "models").iterdir() if path.name.startswith(".")] == []


def conversion(file: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, str(file), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def converted(file: Path, cache: Path) -> tuple[Path, float]:
    """The folder, and how long it took, without the start of the process."""
    with conversion(file, cache) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        return Path(process.stdout.readline().strip()), time.monotonic() - began


def models(cache: Path) -> list[Path]:
    """What a server would take for a model."""
    return [path for path in cache.glob("models/gguf-*") if path.is_dir()]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
