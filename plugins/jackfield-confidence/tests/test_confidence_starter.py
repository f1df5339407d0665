"""With the real starter, as users run it."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from serving import Server, serve

QUESTION = "What is the capital of France?"
WAIT_SECONDS = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("confidence")
    config = folder / "jackfield.toml"
    config.write_text("[plugins.confidence]\nevent_below = 1.0\n")
    environment = {"JACKFIELD_PLUGINS": "confidence", "JACKFIELD_DATA_DIR": str(folder), "JACKFIELD_LOG_LEVEL": "debug"}
    with serve("starter", "--config", str(config), **environment) as server:
        yield server


def ask(server: Server, **fields: Any) -> httpx2.Response:
    body = {"model": "starter", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": QUESTION}]}
    return httpx2.post(f"{server.api}/chat/completions", json=body | {"jackfield": True} | fields, timeout=60)


def confidence(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(answer["jackfield"]["choices"][0]["confidence"]["confidence"])


def logged(server: Server, text: str) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(text in line for line in server.log):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_an_answer_has_a_score_and_a_stream_the_same(server: Server):
    whole = confidence(ask(server).json())
    assert 0 < whole["score"] < 1
    assert whole["factors"]["weakest"] > 0
    last = [line for line in ask(server, stream=True).text.splitlines() if line.startswith("data: {")][-1]
    streamed = confidence(json.loads(last[6:]))
    assert streamed["score"] == pytest.approx(whole["score"], abs=0.02)
    assert streamed["factors"].keys() == whole["factors"].keys()


def test_drawing_unlikely_tokens_lowers_the_score(server: Server):
    sure = confidence(ask(server).json())
    wild = confidence(ask(server, temperature=2, top_p=1, top_k=0, seed=3).json())
    assert wild["score"] < sure["score"]


def test_the_metrics_and_the_log_tell_of_it(server: Server):
    ask(server)
    assert 'jackfield_confidence_score_count{model_name="starter"}' in httpx2.get(f"{server.url}/metrics").text
    assert logged(server, "low_confidence: An answer of starter")
    assert not [line for line in server.log if "Traceback" in line or "default weights are fitted" in line]
