"""Servers make vectors through a Jackfield, if they were started for that."""

from pathlib import Path

import pytest
from openai import OpenAI
from peer import llama_cpp, ray

from serving import serve


@pytest.mark.parametrize("kind", ["llama.cpp", "ray"])
def test_vectors(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make, model = {"llama.cpp": (llama_cpp, "starter_gguf"), "ray": (ray, "starter_plain")}[kind]
    peer = make(request.getfixturevalue(model), tmp_path_factory.mktemp("peer") / "log", "embedding")
    config = tmp_path / "jackfield.toml"
    config.write_text(f"""\
model = "starter"
[upstreams.peer]
url = "{peer.url}/v1"
speaks = "{peer.speaks}"
[models.theirs]
route = [{{ backend = "peer", model = "starter" }}]
""")
    peer.start()
    try:
        with (
            serve("starter", JACKFIELD_CONFIG=str(config)) as server,
            OpenAI(base_url=server.api, api_key="none", max_retries=0) as client,
        ):
            packed = client.embeddings.create(model="theirs", input=["A fox.", "A river."])
            plain = client.embeddings.create(model="theirs", input=["A fox.", "A river."], encoding_format="float")
    finally:
        peer.kill()
    assert [len(one.embedding) for one in packed.data] == [576, 576]
    assert packed.data[0].embedding != packed.data[1].embedding
    assert [one.embedding for one in plain.data] == [one.embedding for one in packed.data]
    assert packed.usage.prompt_tokens > 0
