"""Adapters that PEFT itself has made and saved: the same logits here as there."""

import os
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from peer import PYTHON, require

from jackfield.errors import ModelLoadError
from jackfield.models.adapter_file import read_adapter
from jackfield.models.adapters import install
from jackfield.models.device import Device
from jackfield.models.loading import load_network

TOKENS = mx.array([[5, 6, 7, 8, 9, 10]])
NETWORKS = ("qwen2", "qwen3", "qwen3_moe")
KINDS = ("lora", "rslora", "dora", "patterns", "some layers")
CASES = [(network, kind) for network in NETWORKS for kind in KINDS]
CASES += [("qwen2", "mlp"), ("qwen3", "mlp"), ("qwen3_moe", "experts")]


@pytest.fixture(scope="module")
def made(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, adapters and logits, by transformers and PEFT in float32."""
    require("peft")
    folder = tmp_path_factory.mktemp("peft")
    script = Path(__file__).with_name("make_adapters.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run([str(PYTHON), str(script), str(folder)], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    for network in NETWORKS:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(starter / name, folder / network)
    return folder


@pytest.mark.parametrize(("network", "kind"), CASES)
def test_logits_are_those_of_peft(made: Path, device: Device, network: str, kind: str) -> None:
    model = load_network(made / network, device).model
    plain = np.load(made / network / "logits.npy")
    expected = np.load(made / network / kind / "logits.npy")
    assert np.allclose(model(TOKENS), plain, rtol=1e-3, atol=1e-3)
    adapters, named = install(model, [read_adapter(kind, made / network / kind)])
    with adapters.applied(adapters.chosen([named[kind].index])):
        found = np.array(model(TOKENS))
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3), np.abs(found - expected).max()
    assert np.abs(expected - plain).max() > 0.1


@pytest.mark.parametrize("network", NETWORKS)
def test_modules_that_were_trained_whole_are_refused(made: Path, network: str) -> None:
    with pytest.raises(ModelLoadError, match="is no part of LoRA"):
        read_adapter("whole", made / network / "whole module")
