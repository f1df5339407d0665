"""llama.cpp makes vectors through a Jackfield, if it was started for that."""

from pathlib import Path

from openai import OpenAI
from peer import llama_cpp

from serving import serve


def test_vectors(starter_gguf: Path, tmp_path: Path) -> None:
    peer = llama_cpp(starter_gguf, tmp_path / "log", "embedding")
    config = tmp_path / "jackfield.toml"
    config.write_text(f"""\
model = "starter"
[upstreams.peer]
url = "{peer.url}/v1"
speaks = "llama.cpp"
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
