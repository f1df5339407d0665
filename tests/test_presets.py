"""Presets: what they set, who may overrule them, what they take, and that a machine too small is told so at once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from jackfield.cli.presets import check_preset, plan_preset
from jackfield.errors import ConfigurationError, ModelLoadError
from jackfield.models import machine
from jackfield.models.device import REFERENCE, Device
from jackfield.models.machine import Machine
from jackfield.models.plan import MemoryPlan, usable_memory
from jackfield.settings import PRESETS, load, read

SEED = "qwen2.5-coder-32b"
GB, GiB = 10**9, 2**30
GUIDE = (Path(__file__).parent.parent / "docs" / "models.md").read_text()


def plan(name: str, memory: int) -> MemoryPlan:
    return plan_preset(name, Machine("metal", memory, usable_memory("metal", memory)))


def test_qwen_coder_32b_at_4_bits_with_32k_in_25_gb() -> None:
    """The weights are those of the repository; a token is 64 layers x 8 heads x 128 x 2, of 8 + 2/64 x 16 bits."""
    result = plan(SEED, 36 * GiB)
    assert result.total == 25 * GB
    assert result.weights == pytest.approx(18.43 * GB, rel=0.002)
    assert result.token_bytes == 64 * 8 * 128 * 2 * (8 + 2 * 16 / 64) / 8 == 139_264
    assert result.context_length == 32_768
    assert result.sequence_bytes() == 139_264 * 32_768
    assert result.fits
    assert result.weights + result.workspace + result.rows + result.prefix_cache == result.total


def test_the_machines_that_the_readme_names() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert f"in {plan(SEED, 36 * GiB).total / GB:.0f} GB" in readme
    assert f"may take {usable_memory('metal', 36 * GiB) / GB:.0f} of them" in readme
    assert usable_memory("metal", 32 * GiB) < 25 * GB < usable_memory("cuda", 32 * GiB)


@pytest.mark.parametrize("name", PRESETS)
def test_each_keeps_its_promise_in_the_memory_that_it_takes(name: str) -> None:
    settings = load({"preset": name}, environment={})
    result = plan(name, 96 * GiB)
    assert result.total == settings.memory_limit
    assert result.context_length == settings.context_length
    assert result.fits


def test_the_guide_has_their_figures() -> None:
    rows = dict(re.findall(r"^\| `(\S+)` \| (.+) \|$", GUIDE[GUIDE.index("## Presets") :], re.M))
    for name in PRESETS:
        result = plan(name, 96 * GiB)
        weights, context, keys, total = (cell.strip() for cell in rows[name].split("|"))
        assert (weights, keys) == (f"{result.weights / GB:.1f} GB", f"{result.sequence_bytes() / GB:.1f} GB")
        assert (context, total) == (f"{result.context_length:,}", f"{result.total / GB:.0f} GB")


def test_a_preset_beats_the_defaults_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "jackfield.toml"
    file.write_text(f'preset = "{SEED}"\ncontext_length = 16384\n')
    found = read({"memory_limit": "30GB"}, file, {"JACKFIELD_MODEL": "./mine"})
    settings = found.settings
    assert (settings.context_length, settings.memory_limit, settings.model) == (16384, 30 * GB, "./mine")
    assert settings.kv_bits == 8
    assert found.origin("kv_bits") == ("preset", SEED)
    assert str(found.origin("kv_bits")) == f"the preset {SEED}"
    assert found.origin("context_length").kind == "file"


def test_the_environment_can_choose_one() -> None:
    assert load({}, environment={"JACKFIELD_PRESET": SEED}).model == PRESETS[SEED]["model"]


@pytest.mark.parametrize(("name", "hint"), [("qwen2.5-coder-33b", f"Did you mean '{SEED}'"), ("llama", "There are: ")])
def test_a_preset_that_there_is_not(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match="no preset") as caught:
        load({"preset": name}, environment={})
    assert caught.value.suggestions[0].startswith(hint)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac with 24 GiB, of which models may take two thirds, and no network."""
    device = Device("metal", "Apple M", usable_memory("metal", 24 * GiB), REFERENCE)
    monkeypatch.setattr(machine, "detect_device", lambda blas: device)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("mac")
def test_a_machine_too_small_is_told_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match=f"The preset {SEED} needs more memory") as caught:
        check_preset(load({"preset": SEED}, environment={}))
    assert "19.1 GB of 17.2 GB" in caught.value.message
    assert "Take another preset: --preset qwen2.5-coder-14b" in caught.value.suggestions
    check_preset(load({"preset": "qwen2.5-coder-14b"}, environment={}))
    check_preset(load({}, environment={}))


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "JACKFIELD_CONFIG": os.devnull}
    return subprocess.run(
        [sys.executable, "-m", "jackfield", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **offline},
    )


def test_serve_refuses_before_it_downloads_anything(tmp_path: Path) -> None:
    result = run("serve", "--preset", SEED, "--memory-limit", "12GB", "--port", "0", home=tmp_path)
    assert result.returncode == 1
    assert "of 12.0 GB" in result.stderr
    assert "  - Take another preset: --preset qwen2.5-coder-7b" in result.stderr


def test_doctor_says_the_same_of_machines_that_are_not_there(tmp_path: Path) -> None:
    result = run("doctor", "--preset", SEED, "--memory", "32GB", "--device", "metal", "--json", home=tmp_path)
    assert result.returncode == 3, result.stderr
    found = json.loads(result.stdout)
    assert (found["context_length"], found["kv_bits"], found["fits"]) == (32_768, 8, False)
    assert any("kv_bits = 4" in line for line in found["advice"])
