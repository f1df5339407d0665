"""Other people's servers are large and take a while to start: these tests run as `make test-peers` does."""

import os
from collections.abc import Iterator
from pathlib import Path

import peer_models
import pytest
from openai import OpenAI
from peer import Peer, llama_cpp, mlx_lm, ray, vllm

from serving import Server, serve

if "PEER_TESTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

KINDS = ("llama.cpp", "vllm", "ray", "mlx_lm")


@pytest.fixture(scope="session")
def starter_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter as llama.cpp has it, with tokens for filling in the middle that it was not trained on."""
    return peer_models.write_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="session")
def starter_plain(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter in bfloat16, as PyTorch reads it."""
    return peer_models.write_plain(starter, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session", params=KINDS)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Each of the servers, with the starter."""
    log = tmp_path_factory.mktemp("peer") / "log"
    match request.param:
        case "llama.cpp":
            made = llama_cpp(request.getfixturevalue("starter_gguf"), log)
        case "vllm":
            made = vllm(request.getfixturevalue("starter_plain"), log)
        case "ray":
            made = ray(request.getfixturevalue("starter_plain"), log)
        case _:
            made = mlx_lm(request.getfixturevalue("starter"), log)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="session")
def front(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Jackfield before it: ``theirs`` is answered there alone, ``starter`` there first."""
    config = tmp_path_factory.mktemp("front") / "jackfield.toml"
    config.write_text(f"""\
model = "starter"
[upstreams.peer]
url = "{peer.url}/v1"
speaks = "{peer.speaks}"
max_failures = 1
rest_seconds = 1
[models.theirs]
route = [{{ backend = "peer", model = "{peer.model}" }}]
[models.starter]
source = "starter"
route = [{{ backend = "peer", model = "{peer.model}" }}, "mlx"]
""")
    with serve("starter", JACKFIELD_CONFIG=str(config)) as server:
        yield server


@pytest.fixture
def client(front: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=front.api, api_key="none", max_retries=0, timeout=120) as made:
        yield made
