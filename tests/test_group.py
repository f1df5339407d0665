"""What a group of processes is made of; what it does as a whole is in tests/group."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx_lm.models import qwen3_5, qwen3_moe
from mlx_lm.models.cache import KVCache, RotatingKVCache
from mlx_lm.models.qwen2 import Model, ModelArgs

import vision_models
from group_model import EXPERTS, write_group_model
from groups import group
from jackfield.cli import main
from jackfield.engine.lockstep import from_message, to_message
from jackfield.engine.request import Adapter, EmbeddingRequest, GenerationRequest, PromptImage, SamplingParameters
from jackfield.errors import ConfigurationError, ModelLoadError
from jackfield.group.keeper import AGAIN, FAILED_TRIAL, PARENT, does_the_work
from jackfield.group.line import Line
from jackfield.group.member import _hello as hello_of
from jackfield.group.rank import Rank, addresses, from_environment
from jackfield.models.division import Division
from jackfield.models.folder import contents_of
from jackfield.models.sharding import Part, shard
from model_fixtures import tiny_config

# --- Ranks ---------------------------------------------------------------------------------------------------------


def listed(path: Path, hosts: list[list[str]]) -> str:
    path.write_text(json.dumps(hosts))
    return str(path)


def test_ranks_of_every_backend(tmp_path: Path) -> None:
    ring = {"MLX_RANK": "1", "MLX_HOSTFILE": listed(tmp_path / "ring", [["10.0.0.1:5000"], ["10.0.0.2:5001"]])}
    devices = listed(tmp_path / "devices", [[None, "rdma_en5"], ["rdma_en5", None]])  # type: ignore[list-item]
    jaccl = {"MLX_RANK": "0", "MLX_IBV_DEVICES": devices, "MLX_JACCL_COORDINATOR": "10.0.0.1:32323"}
    nccl = {"MLX_RANK": "3", "MLX_WORLD_SIZE": "4", "NCCL_HOST_IP": "10.0.0.9", "NCCL_PORT": "12345"}
    mpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}
    assert from_environment(ring) == Rank(1, 2, "ring", "10.0.0.1")
    assert from_environment(jaccl) == Rank(0, 2, "jaccl", "10.0.0.1")
    assert from_environment(nccl) == Rank(3, 4, "nccl", "10.0.0.9")
    assert from_environment(mpi) == Rank(2, 3, "mpi")
    assert [from_environment(backend).returns for backend in (ring, jaccl, nccl, mpi)] == [True, True, True, False]  # type: ignore[union-attr]


def test_a_process_alone_has_no_rank(tmp_path: Path) -> None:
    """mlx.launch of one process leaves the list empty."""
    empty = tmp_path / "hosts"
    empty.write_text("")
    assert from_environment({}) is None
    assert from_environment({"MLX_RANK": "0"}) is None
    assert from_environment({"MLX_RANK": "0", "MLX_HOSTFILE": str(empty)}) is None
    assert from_environment({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_contradictions_are_named(tmp_path: Path) -> None:
    hosts = listed(tmp_path / "hosts", [["10.0.0.1:5000"], ["10.0.0.2:5001"]])
    with pytest.raises(ConfigurationError, match="MLX_RANK is 2, in a group of 2"):
        from_environment({"MLX_RANK": "2", "MLX_HOSTFILE": hosts})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        from_environment({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "none")})


# --- Lines ---------------------------------------------------------------------------------------------------------


def test_lines_bring_messages_in_order_and_tell_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = Line(socket.create_connection(listener.getsockname()))
        far = Line(listener.accept()[0])
    near.send({"step": [1, 2.5]})
    near.send({"text": "ü\n"})
    near.close()
    assert list(far) == [{"step": [1, 2.5]}, {"text": "ü\n"}]
    with pytest.raises(ConnectionError):
        far.receive()
    far.close()


@pytest.mark.parametrize(
    "said", [b"", b"1\n", b"[]\n", b"{\n", b"[" * 4096, b'{"a": "' + b"x" * 9000 + b'"}\n', b"\xff\n"]
)
def test_strangers_are_heard_briefly(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stranger = socket.create_connection(listener.getsockname())
        line = Line(listener.accept()[0])
    with stranger:
        stranger.sendall(said)
        with pytest.raises((ValueError, OSError, RecursionError)):
            line.first(0.3)
    line.close()


@pytest.mark.parametrize("said", [{"secret": "é"}, {"rank": 1}, {"secret": 3}, {"secret": "other", "rank": 1}])
def test_only_who_knows_the_secret_is_of_the_group(said: dict[str, object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = Line(socket.create_connection(listener.getsockname()))
        far = Line(listener.accept()[0])
    near.send(said)
    assert hello_of(far, "secret") is None
    near.close()
    far.close()


def test_the_leader_is_reached_where_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else, with MPI, where its name leads to, which on Debian is the machine itself as well."""
    found = [(2, 1, 6, "", ("127.0.1.1", 0)), (2, 1, 6, "", ("10.0.0.7", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert addresses(Rank(0, 2, "ring", "10.0.0.1")) == ["10.0.0.1"]
    assert addresses(Rank(0, 2, "mpi")) == ["10.0.0.7", "127.0.1.1"]


# --- Requests ------------------------------------------------------------------------------------------------------


def test_followers_get_of_a_request_what_the_model_sees() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    image = PromptImage(1, 2, pixels, b"d" * 32)
    adapter, sampling = Adapter(1, b"sixteen bytes..."), SamplingParameters(seed=4)
    request = GenerationRequest("a", (1, 2, 2, 3), 7, sampling, (image,), adapter, priority=-10, deadline=5.5)
    copy = from_message(json.loads(json.dumps(to_message(request))))
    assert isinstance(copy, GenerationRequest)
    assert (copy.id, copy.prompt, copy.max_tokens, copy.priority, copy.deadline) == ("a", (1, 2, 2, 3), 7, -10, 5.5)
    assert (copy.images[0].start, copy.images[0].end, copy.images[0].digest) == (1, 3, b"d" * 32)
    assert np.array_equal(copy.images[0].pixels, pixels)
    assert copy.adapter == adapter
    texts = EmbeddingRequest("b", ((1, 2), (3,)), "last", priority=60)
    assert from_message(json.loads(json.dumps(to_message(texts)))) == texts


# --- Keeping the work up -------------------------------------------------------------------------------------------

KEEP = "import sys; from jackfield.group.keeper import keep_up; sys.exit(keep_up(sys.argv[1:]))"

ONCE = "import sys; from jackfield.group.keeper import see_through; sys.exit(see_through(sys.argv[1:], leads=True))"


def kept(script: str, tmp_path: Path, how: str = KEEP) -> "subprocess.Popen[bytes]":
    """A process that keeps another one up, which appends a line to a file each time that it starts."""
    begin = (
        f"import os, signal, sys, time\nlog = open({str(tmp_path / 'starts')!r}, 'a')\nlog.write('x')\nlog.close()\n"
    )
    command = [sys.executable, "-c", how, sys.executable, "-c", begin + script]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text()) if (tmp_path / "starts").exists() else 0


@pytest.mark.parametrize("last", [0, 1, 3])
def test_the_status_of_work_that_ends_by_itself(last: int, tmp_path: Path) -> None:
    assert kept(f"sys.exit({last})", tmp_path).wait(30) == last
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("falls", [f"sys.exit({AGAIN})", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_work_begins_anew(falls: str, tmp_path: Path) -> None:
    """When the group fell apart, and when the process was killed."""
    once = f"if len(open({str(tmp_path / 'starts')!r}).read()) < 3: {falls}"
    assert kept(once, tmp_path).wait(30) == 0
    assert starts(tmp_path) == 3


WITHOUT_PAUSES = KEEP.replace("; sys", "; keep_up.__globals__['PAUSES'] = (0.0,); sys")


def test_trials_that_fail_again_and_again(tmp_path: Path) -> None:
    assert kept(f"sys.exit({FAILED_TRIAL})", tmp_path, WITHOUT_PAUSES).wait(30) == FAILED_TRIAL
    assert starts(tmp_path) == 3


def test_trials_that_fail_now_and_then(tmp_path: Path) -> None:
    """Only those in a row count."""
    ends = [FAILED_TRIAL, FAILED_TRIAL, AGAIN, FAILED_TRIAL, FAILED_TRIAL, 0]
    number = f"len(open({str(tmp_path / 'starts')!r}).read()) - 1"
    assert kept(f"sys.exit({ends}[{number}])", tmp_path, WITHOUT_PAUSES).wait(30) == 0
    assert starts(tmp_path) == 6


def test_a_signal_is_passed_on_and_ends_it(tmp_path: Path) -> None:
    keeper = kept(f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({AGAIN}))\ntime.sleep(60)", tmp_path)
    while not starts(tmp_path):
        time.sleep(0.05)
    time.sleep(0.5)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(30) == 0
    assert starts(tmp_path) == 1


@pytest.mark.parametrize(
    ("ends", "status"),
    [("sys.exit(0)", 0), ("sys.exit(3)", 3), (f"sys.exit({AGAIN})", AGAIN), ("os.kill(os.getpid(), 9)", AGAIN)],
)
def test_work_that_only_its_launcher_begins_anew(ends: str, status: int, tmp_path: Path) -> None:
    assert kept(ends, tmp_path, ONCE).wait(30) == status
    assert starts(tmp_path) == 1


def test_a_follower_stays_until_its_leader_has_ended(tmp_path: Path) -> None:
    """Or until its launcher ends it."""
    keeper = kept(f"sys.exit({AGAIN})", tmp_path, ONCE.replace("True", "False"))
    while not starts(tmp_path):
        time.sleep(0.05)
    time.sleep(0.5)
    assert keeper.poll() is None
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(30) == AGAIN


def test_who_does_the_work() -> None:
    assert does_the_work({PARENT: str(os.getppid())})
    assert not does_the_work({})
    assert not does_the_work({PARENT: "1" if os.getppid() != 1 else "2"})


# --- Dividing networks ---------------------------------------------------------------------------------------------


class Size:
    """A group of so many, of which this is one."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


def network(**changes: object) -> tuple[Model, dict[str, object]]:
    config = tiny_config("qwen2", 64, **changes)
    return Model(ModelArgs.from_dict(config)), config


def experts_network() -> tuple[qwen3_moe.Model, dict[str, object]]:
    config = tiny_config("qwen3_moe", 64, **EXPERTS, mlp_only_layers=[], norm_topk_prob=True)
    return qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(config)), config


def test_every_layer_is_shared_out_where_that_is_possible() -> None:
    model, config = network()
    assert shard(model, config, Size(2, 1)) == Part("tensor", 2)  # type: ignore[arg-type]
    assert model.layers[0].self_attn.n_heads == 2
    assert model.layers[0].mlp.up_proj.weight.shape == (64, 64)


ARCHITECTURES = {
    "qwen2": lambda: network()[0],
    "qwen3_moe": lambda: experts_network()[0],
    # Query, key, value and gate in one matrix.
    "muse_spark": lambda: vision_models.network(vision_models.config(64, 7)),
    # Layers that have a state, whose query, key and value are in one matrix.
    "qwen3_5": lambda: qwen3_5.Model(qwen3_5.ModelArgs.from_dict({"model_type": "qwen3_5", "text_config": LINEAR})),
}

LINEAR = tiny_config("qwen3_5_text", 64) | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "rope_parameters": {"type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_known_which_inputs_and_outputs_of_a_layer_are_whose(architecture: str) -> None:
    model = ARCHITECTURES[architecture]()
    whole = {path: module.weight for path, module in model.named_modules() if "_proj" in path and "weight" in module}
    second: Any = Size(2, 1)
    division = Division(model, lambda other: other.shard(second), second)
    model.shard(second)
    own = {path: module.weight for path, module in model.named_modules() if path in whole}
    assert own.keys() == whole.keys()
    assert any(own[path].size < whole[path].size for path in whole)
    for path, weight in whole.items():
        if "vision" not in path:
            taken = mx.take(mx.take(weight, division.outputs(path), axis=-2), division.inputs(path), axis=-1)
            assert mx.array_equal(own[path], taken).item(), path


def test_layers_are_where_it_is_not() -> None:
    model, config = network(num_attention_heads=3, num_key_value_heads=3, hidden_size=96)
    assert shard(model, config, Size(2, 1)) == Part("pipeline", 1)  # type: ignore[arg-type]
    assert len(model.layers) == 1


def test_layers_go_to_any_number_of_processes() -> None:
    """The first have one more where it does not come out even, and all count as many."""
    own = []
    for rank in range(3):
        model, config = network(num_hidden_layers=7, num_attention_heads=4)
        assert shard(model, config, Size(3, rank), "pipeline") == Part("pipeline", 3)  # type: ignore[arg-type]
        own.append(len(model.layers))
    assert own == [3, 2, 2]


def test_layers_of_several_kinds_have_to_come_out_even() -> None:
    """Otherwise processes would hold other things of the same tokens, and decide otherwise about memory."""
    model, config = network(num_hidden_layers=3)
    mixed = [KVCache(), RotatingKVCache(max_size=64), KVCache()]
    model.make_cache = lambda: mixed
    with pytest.raises(ModelLoadError, match="its 3 layers, which are of several kinds, are no multiple of 2"):
        shard(model, config, Size(2), "pipeline")  # type: ignore[arg-type]


def test_what_cannot_be_divided_says_why() -> None:
    model, config = network()
    with pytest.raises(ModelLoadError, match="its 4 attention heads are no multiple of 3") as refused:
        shard(model, config, Size(3))  # type: ignore[arg-type]
    assert "it has 2 layers only" in refused.value.message
    with pytest.raises(ModelLoadError, match=r"among 3 processes\. pipeline: it has 2 layers only"):
        shard(model, config, Size(3), "pipeline")  # type: ignore[arg-type]


def test_no_pipeline_where_one_process_cannot_send_to_another() -> None:
    assert [Rank(0, 2, backend).sends for backend in ("ring", "mpi", "jaccl", "nccl")] == [True, True, True, False]
    model, config = network(num_attention_heads=3, num_key_value_heads=3, hidden_size=96)
    with pytest.raises(ModelLoadError, match="pipeline: by these means MLX cannot send from one process to another"):
        shard(model, config, Size(2), sends=False)  # type: ignore[arg-type]


def test_scales_are_not_divided() -> None:
    model, config = network(intermediate_size=192)
    config["quantization"] = {"group_size": 64, "bits": 4}
    with pytest.raises(ModelLoadError, match="each would have 96 neurons, no multiple of the 64 that share a scale"):
        shard(model, config, Size(2), "tensor")  # type: ignore[arg-type]


def test_a_network_that_mlx_lm_cannot_divide() -> None:
    class Whole:
        layers = (1, 2)
        model = None

    with pytest.raises(ModelLoadError, match="has no pipeline for this architecture"):
        shard(Whole(), {"model_type": "whole"}, Size(2))  # type: ignore[arg-type]


def test_copies_have_the_same_contents(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert contents_of(copy) == contents_of(tiny_model)
    (copy / "config.json").write_text("{}")
    assert contents_of(copy) != contents_of(tiny_model)


# --- What a group does not have ------------------------------------------------------------------------------------


def test_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = listed(tmp_path / "hosts", [["127.0.0.1:1"], ["127.0.0.1:2"]])
    # As one of two followers, which has been started by somebody to do the work.
    for name, value in {"MLX_RANK": "1", "MLX_HOSTFILE": hosts, PARENT: str(os.getppid())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JACKFIELD_PLUGINS", "none")
    result = CliRunner().invoke(main, ["serve", "--model", "starter", "--model", "other/model"])
    assert result.exit_code == 1
    assert "serve one model, and 2 are set" in result.output


# --- As a whole ----------------------------------------------------------------------------------------------------


def test_two_processes_serve_one_model(starter: Path, tmp_path: Path) -> None:
    """Much more of this is in tests/group."""
    model = write_group_model(starter, tmp_path / "group-model")
    with group(model, 2) as serving:
        asked = {"model": "group-model", "prompt": "The fox", "max_tokens": 8, "seed": 1}
        answers = {serving.client.completions.create(**asked).choices[0].text for _ in range(2)}
        assert len(answers) == 1
        for rank in serving.ranks:
            rank.process.terminate()
        assert [rank.process.wait(60) for rank in serving.ranks] == [0, 0]
