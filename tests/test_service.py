"""From settings to an engine: what is planned at the start, and what outlives a restart."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import httpx2
import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.utils import load_model

from jackfield.engine.request import GenerationRequest, SamplingParameters, StartEvent
from jackfield.models import loading, service
from jackfield.models.memory import Memory
from jackfield.models.service import SchedulerLoader, held_by
from jackfield.settings import Settings
from model_fixtures import write_config
from serving import Server
from serving import serve_measured as serve

LONG = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog, and nobody knows why. " * 20}]


def ask(server: Server, **fields) -> httpx2.Response:
    body = {"model": server.model, "messages": LONG, "max_tokens": 8, "temperature": 0, "jackfield": True, **fields}
    return httpx2.post(f"{server.api}/chat/completions", json=body, timeout=60)


def cache_use(response: httpx2.Response) -> dict:
    return response.json()["jackfield"]["choices"][0]["cache"]


def text(response: httpx2.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def test_the_start_up_says_what_fits(tiny_server):
    plan = "".join(tiny_server.log)
    assert re.search(r"Memory [\d.]+ GB: weights .* activations .* KV cache .* prefix cache .* a token", plan)
    assert re.search(r"Context 4,096 tokens x 32 at the same time: all fit, and .* remain", plan)


def refusal(model: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "jackfield", "serve", "--model", str(model), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 1
    assert "Serving" not in result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_model_that_does_not_fit_is_refused_with_what_to_do(tiny_model):
    said = refusal(tiny_model, JACKFIELD_MEMORY_LIMIT="1MB")
    assert "Does not fit" in said


@pytest.mark.parametrize("wrong", ["much", "-3GB", "5 elephants"])
def test_a_size_that_is_none_is_refused_by_name(tiny_model, wrong):
    told = refusal(tiny_model, JACKFIELD_MEMORY_LIMIT=wrong)
    assert "'memory_limit' from the environment: JACKFIELD_MEMORY_LIMIT is wrong" in told


def test_keys_and_values_that_cannot_be_quantized_are_told_before_the_port_opens(tiny_model):
    assert "cannot be quantized" in refusal(tiny_model, JACKFIELD_KV_BITS="8")


def test_a_context_that_does_not_fit_is_shortened_and_said_so(tiny_model):
    doctor = [sys.executable, "-m", "jackfield", "doctor", str(tiny_model), "--json"]
    sizes = httpx2.Response(200, content=subprocess.check_output(doctor)).json()
    # Room for half of a sequence at the full context. Activations are planned for the full one.
    limit = sizes["weights_bytes"] + sizes["workspace_bytes"] + sizes["sequence_bytes"] // 2
    with serve(tiny_model, JACKFIELD_MEMORY_LIMIT=str(limit), JACKFIELD_PREFIX_CACHE_BYTES="0") as server:
        (line,) = [line for line in server.log if "Does not fit" in line]
        context = int(re.search(r"a context of ([\d,]+) fits", line)[1].replace(",", ""))
        assert 1024 <= context <= 2048
        assert ask(server).status_code == 200
        refused = ask(server, messages=[{"role": "user", "content": "word " * 3000}])
        assert refused.status_code == 400
        assert f"maximum context length is {context} tokens" in refused.json()["error"]["message"]


def test_prompts_outlive_a_restart_on_disk_where_nobody_else_reads_them(tiny_model, tmp_path):
    keep = {"JACKFIELD_PREFIX_CACHE_DISK_BYTES": "1GB", "JACKFIELD_CACHE_DIR": str(tmp_path)}
    with serve(tiny_model, **keep) as server:
        cold = ask(server)
        assert (cache_use(cold)["cached_tokens"], cache_use(cold)["miss"]) == (0, "new")
    files = [path for path in (tmp_path / "prefixes").rglob("*") if path.is_file()]
    assert files
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files)
    with serve(tiny_model, **keep) as server:
        warm = ask(server)
        use = cache_use(warm)
        assert use["from_disk"] == use["cached_tokens"] > use["prompt_tokens"] - 34
        assert use["miss"] is None
        assert text(warm) == text(cold)
        metrics = httpx2.get(f"{server.url}/metrics").text
        assert re.search(r'cached_total\{model_name="[^"]*",tier="disk"\} [1-9]', metrics)


@pytest.fixture
def quantized(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model in 4 bits, with scales and activations in float16."""
    folder = shutil.copytree(tiny_model, tmp_path / "quantized")
    model, config = load_model(folder)
    model.set_dtype(mx.float16)
    nn.quantize(model, 32, 4)
    model.save_weights(str(folder / "model.safetensors"))
    write_config(folder, config | {"quantization": {"group_size": 32, "bits": 4}})
    return folder


def loader(folder: Path, cache: Path, **settings) -> SchedulerLoader:
    return SchedulerLoader(Settings(model=str(folder), cache_dir=cache, **settings), folder, lambda _: None)


def test_types_of_keys_and_values_share_nothing_on_disk(quantized, tmp_path, monkeypatch):
    # Not enough memory to expand the weights, so they are "4-bit" in both.
    monkeypatch.setattr(loading, "host_memory", lambda: Memory(2**30, 2**30))
    kinds = {}
    for dtype in ("auto", "keep"):
        load = loader(quantized, tmp_path, dtype=dtype, prefix_cache_disk_bytes=1 << 30)
        scheduler = load(False)
        assert load._network.dtype == "4-bit"
        kinds[dtype] = held_by(scheduler.runner)
        prompt = tuple(range(100))
        scheduler.submit(GenerationRequest("a", prompt, 1, SamplingParameters(temperature=0)))
        found = []
        while not scheduler.idle:
            found += [event.cache for _, event in scheduler.step() if isinstance(event, StartEvent)]
        scheduler.close()
        assert [use.tokens for use in found] == [0]
    assert kinds["auto"] != kinds["keep"]


def test_a_model_is_taken_over_until_it_is_wanted_afresh(tiny_model, tmp_path, monkeypatch):
    read = []

    def load_network(*arguments, **options):
        read.append(arguments)
        return loading.load_network(*arguments, **options)

    monkeypatch.setattr(service, "load_network", load_network)
    load = loader(tiny_model, tmp_path, prefix_cache_disk_bytes=0)
    models = [load(fresh).runner.model for fresh in (False, False, False, True, False)]
    assert len(read) == 2
    assert models[0] is models[1] is models[2] is not models[3] is models[4]


def test_the_disk_cache_outlives_its_scheduler(tiny_model, tmp_path):
    load = loader(tiny_model, tmp_path, prefix_cache_disk_bytes=1 << 30)
    first, second = load(False), load(True)
    assert first.prefix_cache.disk is second.prefix_cache.disk is not None
    second.close()


def test_damaged_files_are_thrown_away_with_a_warning_and_never_served(tiny_model, tmp_path):
    keep = {"JACKFIELD_PREFIX_CACHE_DISK_BYTES": "1GB", "JACKFIELD_CACHE_DIR": str(tmp_path)}
    with serve(tiny_model, **keep) as server:
        cold = ask(server)
    for path in (tmp_path / "prefixes").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[-5] ^= 1
            path.write_bytes(data)
    with serve(tiny_model, **keep) as server:
        again = ask(server)
        assert (cache_use(again)["cached_tokens"], cache_use(again)["miss"]) == (0, "damaged")
        assert text(again) == text(cold)
        assert any("WARNING" in line for line in server.log)
