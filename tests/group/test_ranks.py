"""What becomes of a group when one of its processes goes, or does not fit; and that machines may be apart."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from safetensors.numpy import load_file, save_file

from groups import answer, children, environment, free_ports, group, ready, runs, start, streaming, wait_until
from serving import DEFAULTS


def test_a_follower_is_killed(model: Path) -> None:
    """Requests end with an error that says why, so does ``/ready``, and then the group is there again."""
    with group(model, 2) as serving:
        before = answer(serving.client)
        stream = streaming(serving)
        os.kill(serving.ranks[1].worker, signal.SIGKILL)
        wait_until(lambda: "rank 1 is gone" in ready(serving.url)[1], lambda: serving.log)
        assert ready(serving.url)[0] == 503
        stream.join(60)
        assert "rank 1 is gone" in str(stream.error)
        with pytest.raises(openai.InternalServerError, match="rank 1 is gone"):
            answer(serving.client)
        wait_until(lambda: ready(serving.url)[0] == 0, lambda: repr(ready(serving.url)))
        serving.wait_until_ready()
        assert answer(serving.client) == before


def test_the_leader_is_killed(model: Path) -> None:
    with group(model, 3) as serving:
        before = answer(serving.client)
        stream = streaming(serving)
        os.kill(serving.ranks[0].worker, signal.SIGKILL)
        stream.join(60)
        wait_until(lambda: serving.ranks[0].says("started anew"), lambda: serving.log)
        serving.wait_until_ready()
        assert answer(serving.client) == before
        assert serving.ranks[1].says("the leader is gone")


def test_a_follower_hangs(model: Path) -> None:
    """It is given up after a while, and comes back when it goes on."""
    with group(model, 2) as serving:
        stream = streaming(serving)
        hanging = serving.ranks[1].worker
        os.kill(hanging, signal.SIGSTOP)
        try:
            stream.join(60)
            assert "rank 1 is gone" in str(stream.error)
        finally:
            os.kill(hanging, signal.SIGCONT)
        wait_until(lambda: serving.ranks[1].says("started anew"), lambda: serving.log)
        serving.wait_until_ready()
        assert answer(serving.client)


def test_the_launcher_of_a_follower_is_killed(model: Path) -> None:
    """What it has started ends with it."""
    with group(model, 2) as serving:
        worker = serving.ranks[1].worker
        serving.ranks[1].process.kill()
        wait_until(lambda: "rank 1 is gone" in ready(serving.url)[1], lambda: serving.log)
        wait_until(lambda: not runs(worker))


def test_its_model_stays(model: Path) -> None:
    """It would end in the other processes, too, and not come back with the next request."""
    with group(model, 2, "--unload-after", "1") as serving:
        with pytest.raises(openai.ConflictError, match="it is pinned"):
            serving.client.post("/models/unload", body={"model": "group-model"}, cast_to=object)
        time.sleep(3)
        assert answer(serving.client)


def test_other_weights(model: Path, tmp_path: Path) -> None:
    """Ranks whose models differ do not serve, and say so."""
    other = shutil.copytree(model, tmp_path / "group-model")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace("10000.0", "20000.0"))
    with start([model, other], 2) as (ranks, _):
        assert [rank.process.wait(100) for rank in ranks] == [1, 1]
        assert all("Rank 1 has other files of the model" in "".join(rank.log) for rank in ranks)


def test_damaged_weights_on_one_machine(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "group-model")
    weights = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    # Of the same size, so that only loading shows it.
    save_file(weights | {name: weights[name].T.copy()}, other / "model.safetensors")
    with start([model, other], 2) as (ranks, _):
        assert ranks[0].process.wait(100) == 1
        wait_until(lambda: ranks[0].says("Rank 1 cannot go on"), lambda: "".join(ranks[0].log))


def test_indivisible(model: Path) -> None:
    with start(model, 4, "--parallelism", "tensor") as (ranks, _):
        wait_until(lambda: ranks[0].process.poll() is not None)
        assert ranks[0].says("cannot be divided among 4 processes")
        assert ranks[0].says("its 6 attention heads are no multiple of 4")


def test_mlx_launch(model: Path) -> None:
    """As users start it."""
    launch = Path(sys.executable).with_name("mlx.launch")
    port, ring = free_ports(2)
    command = [sys.executable, "-m", "jackfield", "serve", "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(
        [launch, "-n", "2", "-p", str(ring), "--", *command],
        # It watches what is typed, and never rests when that is at its end.
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **DEFAULTS},
    )
    url = f"http://127.0.0.1:{port}"
    with process, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        wait_until(lambda: ready(url)[0] == 200)
        assert answer(client)
        leader = next(pid for pid in children(process.pid) if b"MLX_RANK=0" in environment(pid))
        os.kill(leader, signal.SIGTERM)
        # The others end with it, and so does the launcher.
        assert process.wait(60) == 0


# --- Machines apart ------------------------------------------------------------------------------------------------

NEAR, FAR = "10.213.7.1", "10.213.7.2"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def other_machine() -> Iterator[str]:
    """The name of a network namespace with one cable to this one."""
    name = f"jackfield{os.getpid()}"
    near, far = f"jf{os.getpid()}", f"jg{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces are root's to make, with iproute2")
    try:
        run("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"there can be no network namespace here: {error.stderr.decode()}")
    try:
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        run("ip", "address", "add", f"{NEAR}/30", "dev", near)
        run("ip", "link", "set", near, "up")
        for command in (["address", "add", f"{FAR}/30", "dev", far], ["link", "set", far, "up"]):
            run("ip", "-n", name, *command)
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("ip", "netns", "delete", name)


def test_across_network_namespaces(model: Path, other_machine: str) -> None:
    """Two network stacks with a cable between them: it serves, and when the cable is pulled and put back, again."""
    apart = ((), ("ip", "netns", "exec", other_machine))
    with group(model, 2, hosts=(NEAR, FAR), launchers=apart) as serving:
        before = answer(serving.client)
        stream = streaming(serving)
        cable = f"jg{os.getpid()}"
        run("ip", "-n", other_machine, "link", "set", cable, "down")
        stream.join(90)
        assert "rank 1 is gone" in str(stream.error)
        run("ip", "-n", other_machine, "link", "set", cable, "up")
        wait_until(lambda: serving.ranks[0].says("started anew"), lambda: serving.log)
        serving.wait_until_ready()
        assert answer(serving.client) == before
