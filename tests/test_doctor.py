"""``jackfield doctor``, as one runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hub_server import FakeHub, serve

CODER = "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit"
MAC = ("--memory", "48GB", "--device", "metal")


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jackfield", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **environment},
    )


def facts(*arguments: str, status: int = 0, **environment: str) -> dict[str, Any]:
    result = doctor(*arguments, "--json", **environment)
    assert result.returncode == status, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_qwen_coder_32b_on_a_48_gb_mac_without_model_mac_or_network(tmp_path: Path) -> None:
    result = doctor(CODER, *MAC, HF_HOME=str(tmp_path))
    assert result.returncode == 0
    for words in (
        "18.4 GB",
        "262,144 bytes a token",
        "32,768 tokens",
        "38.7 GB",
        "built-in table",
        "2 of 32 sequences",
    ):
        assert words in result.stdout
    assert "█" in result.stdout, "a picture"


def test_the_same_for_programs(tmp_path: Path) -> None:
    found = facts(CODER, *MAC, "--max-batch", "2", HF_HOME=str(tmp_path))
    assert found["fits"] is True
    assert found["kv_bytes_per_token"] == 262_144
    assert found["sequences_at_full_context"] == 2
    assert found["downloaded"] is False
    assert found["disk_bytes"] == pytest.approx(18.43e9, rel=0.002)


def test_what_does_not_fit_has_a_status_and_advice_of_its_own(tmp_path: Path) -> None:
    limited = (CODER, *MAC, "--memory-limit", "25GB")
    result = doctor(*limited, HF_HOME=str(tmp_path))
    assert result.returncode == 3
    assert "Does not fit" in result.stdout
    assert "|" in result.stdout, "the limit, in the picture"
    advice = facts(*limited, status=3, HF_HOME=str(tmp_path))["advice"]
    assert [any(word in line for line in advice) for word in ("kv_bits = 8", "context_length", "14B")] == [True] * 3
    assert facts(*limited, "--kv-bits", "8", HF_HOME=str(tmp_path))["fits"] is True
    assert facts(*limited, "--context-length", "16384", HF_HOME=str(tmp_path))["fits"] is True


def test_a_model_that_the_settings_have_a_table_for(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text(f'model = "coder"\n[models.coder]\nsource = "{tiny_model}"\ncontext_length = 512')
    assert facts("--config", str(file))["context_length"] == 512


def test_a_model_in_a_folder_on_this_machine(tiny_model: Path) -> None:
    found = facts(str(tiny_model))
    assert found["downloaded"] is True
    assert found["model_type"] == "qwen2"
    assert found["total_bytes"] <= found["machine_bytes"]
    assert facts(str(tiny_model), "--context-length", "256")["context_length"] == 256
    assert facts(str(tiny_model), JACKFIELD_MAX_BATCH="5")["slots"] == 5, "settings count as for serve"


def test_without_a_model_it_is_the_starter(starter: Path) -> None:
    result = doctor()
    assert result.returncode == 0
    assert "starter" in result.stdout


def test_on_the_hub_only_the_config_is_downloaded(tiny_model: Path, tmp_path: Path) -> None:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    files = {name: (tiny_model / name).read_bytes() for name in names}
    online = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    with serve(FakeHub({"acme/tiny": files})) as hub:
        found = facts("acme/tiny", HF_ENDPOINT=hub.url, **online)
        unknown = doctor("acme/nothing", HF_ENDPOINT=hub.url, **online)
    assert hub.downloads == ["config.json@0"]
    assert "Hub" in found["origin"]
    assert found["disk_bytes"] == sum(len(data) for name, data in files.items() if name != "config.json")
    assert found["weights_bytes"] == facts(str(tiny_model))["weights_bytes"]
    assert unknown.returncode == 1
    assert "There is no acme/nothing" in unknown.stderr


def test_a_model_in_the_hubs_cache_needs_no_network(tiny_model: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = facts("acme/tiny", HF_HOME=str(tmp_path))
    assert found["downloaded"] is True
    assert "cache" in found["origin"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acme/unheard-of",), "cannot be reached"),
        (("./nothing",), "does not exist"),
        (("./nothing.gguf",), "cannot be read"),
        (("--memory", "much"), "not a size"),
        (("--kv-bits", "5"), "kv_bits"),
    ],
)
def test_mistakes_are_told_with_what_to_do(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = doctor(*arguments, HF_HOME=str(tmp_path))
    assert result.returncode == 1
    assert message in result.stderr
    assert "  - " in result.stderr
    assert "Traceback" not in result.stderr


def test_help_has_examples_and_the_keys_of_json(tmp_path: Path) -> None:
    text = doctor("--help").stdout
    assert "--memory 48GB --device metal" in text
    listed = set(text.split("Keys of --json:")[1].replace(",", " ").replace(".", " ").split())
    assert not facts(CODER, *MAC, HF_HOME=str(tmp_path)).keys() - listed


def test_the_picture_without_unicode(tmp_path: Path) -> None:
    result = doctor(CODER, *MAC, HF_HOME=str(tmp_path), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 0
    assert "####" in result.stdout
