"""Plugins that prepare models are the same in all processes, and a trial that fails in one does not hang the others."""

import os
from pathlib import Path

import pytest

from groups import answer, group, start, wait_until
from jackfield.group.keeper import FAILED_TRIAL

PLUGIN = """
import os

import mlx.core as mx
from mlx import nn
from jackfield.hooks import hookimpl

SELF = os.environ["MLX_RANK"]


class Fragile(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def __call__(self, x):
        if SELF in os.environ.get("FRAGILE", "") and x.shape[0] == 2:
            raise MemoryError("no room for two rows")
        if SELF in os.environ.get("STUMBLES", ""):
            raise OSError("no room at all")
        return self.base(x)


class Plugin:
    @hookimpl
    def prepare_model(self, model, config, device):
        if SELF in os.environ.get("FAILS", ""):
            raise RuntimeError("cannot prepare it")
        model.layers[1].mlp = Fragile(model.layers[1].mlp)
        return model
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that have the plugin."""
    (tmp_path / "fragile_plugin.py").write_text(PLUGIN)
    information = tmp_path / "fragile-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text("[jackfield]\nfragile = fragile_plugin:Plugin\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "JACKFIELD_PLUGINS": "fragile"}


def test_the_same_plugin_everywhere(model: Path, installed: dict[str, str]) -> None:
    with group(model, 2, **installed) as serving:
        assert answer(serving.client)


def test_a_plugin_that_one_does_not_have(model: Path, installed: dict[str, str]) -> None:
    without = [[], ["--disable-plugin", "fragile"]]
    with start(model, 2, own=without, **installed | {"JACKFIELD_PLUGINS": ""}) as (ranks, _):
        assert [rank.process.wait(100) for rank in ranks] == [1, 1]
        told = "Rank 1's model is prepared by no plugins, rank 0's by the plugins fragile 1.2."
        assert all(rank.says(told) for rank in ranks), [rank.log for rank in ranks]


def test_a_plugin_that_fails_in_one(model: Path, installed: dict[str, str]) -> None:
    """It is left out where it fails, and the others would compute something else."""
    with start(model, 2, FAILS="1", **installed) as (ranks, _):
        assert ranks[0].process.wait(100) == 1
        assert ranks[0].says("Rank 1's model is prepared by no plugins, rank 0's by the plugins fragile 1.2.")


def test_a_trial_that_fails_in_all(model: Path, installed: dict[str, str]) -> None:
    """Then it is something that the model cannot do, and it serves without."""
    with group(model, 2, "--parallelism", "tensor", FRAGILE="0 1", **installed) as serving:
        assert answer(serving.client)


@pytest.mark.parametrize(("rank", "parallelism"), [(0, "tensor"), (1, "pipeline")])
def test_a_trial_that_fails_in_one(model: Path, installed: dict[str, str], rank: int, parallelism: str) -> None:
    """The others, which wait in MLX for ever, end nevertheless, and it is said why."""
    told = f"rank {rank} failed while it tried out the model (MemoryError: no room for two rows)"
    with start(model, 2, "--parallelism", parallelism, FRAGILE=str(rank), **installed) as (ranks, _):
        wait_until(lambda: ranks[0].says(told), lambda: "".join(ranks[0].log))
        wait_until(lambda: all(rank.says("started anew") for rank in ranks), lambda: "".join(ranks[1].log))


def test_a_trial_that_fails_in_one_again_and_again(model: Path, installed: dict[str, str]) -> None:
    """Then the group is given up: the leader ends, and so its launcher."""
    with start(model, 2, "--parallelism", "pipeline", FRAGILE="1", **installed) as (ranks, _):
        assert ranks[0].process.wait(300) == FAILED_TRIAL
        wait_until(
            lambda: ranks[0].says("given up: loading the model failed 3 times in a row"), lambda: "".join(ranks[0].log)
        )
        assert "".join(ranks[0].log).count("has fallen apart: rank 1 failed while it tried out the model") == 3


def test_one_that_cannot_load_its_part_again_and_again(model: Path, installed: dict[str, str]) -> None:
    """The same, where it is not a trial that fails."""
    with start(model, 2, "--parallelism", "pipeline", STUMBLES="1", **installed) as (ranks, _):
        assert ranks[0].process.wait(300) == FAILED_TRIAL
        told = "has fallen apart: rank 1 could not load its part (no room at all)"
        assert "".join(ranks[0].log).count(told) == 3
