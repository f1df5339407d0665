"""Several models in one server, as clients meet them: real engines. One fits in memory, or a small one beside it."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIStatusError, OpenAI

import hub_server
from model_fixtures import random_weights, write_model
from serving import Server, serve

QUESTION: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models that answer differently, one whose weights are cut off, and one that no config tells of."""
    folder = tmp_path_factory.mktemp("several")
    config = json.loads((tiny_model / "config.json").read_text())
    for seed, name in enumerate(("first", "second", "third", "broken", "untold"), 1):
        (folder / name).mkdir()
        for file in tiny_model.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        write_model(folder / name, config, random_weights(config, seed))
    whole = (folder / "broken" / "model.safetensors").read_bytes()
    (folder / "broken" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "untold" / "config.json").write_text("{}")
    (folder / "jackfield.toml").write_text(f"""
model = "first"
memory_limit = "1400MB"
max_batch = 4

[models.first]
source = "{folder}/first"

[models.second]
source = "{folder}/second"
context_length = 1024
aliases = ["gpt-4o"]

[models.third]
source = "{folder}/third"
unload_after = 1

[models.small]
source = "{folder}/second"
context_length = 128

[models.broken]
source = "{folder}/broken"

[models.untold]
source = "{folder}/untold"

[aliases]
gpt-4o-mini = "first"
""")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve("first", "--config", str(folder / "jackfield.toml")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, str]:
    """What each says in a server of its own."""
    said = {}
    for name in ("first", "second"):
        with serve(folder / name, "--max-batch", "4") as server, OpenAI(base_url=server.api, api_key="none") as client:
            said[name] = client.completions.create(model=name, **QUESTION).choices[0].text
    return said


def says(client: OpenAI, name: str) -> tuple[str, str]:
    answer = client.completions.create(model=name, **QUESTION)
    return answer.model, answer.choices[0].text


def reports(server: Server) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in httpx2.get(f"{server.api}/models").json()["data"]}


def states(server: Server) -> dict[str, str]:
    return {name: model["jackfield"]["state"] for name, model in reports(server).items()}


def test_all_of_them_are_listed(server: Server) -> None:
    assert set(reports(server)) == {"first", "second", "third", "small", "broken", "untold"}
    second = reports(server)["second"]
    assert second["context_length"] == second["max_model_len"] == 1024
    assert second["jackfield"]["aliases"] == ["gpt-4o"]
    assert second["jackfield"]["pinned"] is False
    assert {"chat", "tools", "fill_in_the_middle", "embeddings"} <= set(second["jackfield"]["capabilities"])
    assert "images" not in second["jackfield"]["capabilities"]
    one = httpx2.get(f"{server.api}/models/gpt-4o").json()
    assert one["id"] == "second"


def test_each_answers_as_it_would_alone(client: OpenAI, server: Server, alone: dict[str, str]) -> None:
    assert alone["first"] != alone["second"]
    for name in ("first", "second", "first"):
        assert says(client, name) == (name, alone[name])
        assert [one for one, state in states(server).items() if state == "ready"] == [name]


def test_other_names_mean_the_same_model(client: OpenAI, alone: dict[str, str]) -> None:
    assert says(client, "gpt-4o-mini") == ("first", alone["first"])
    assert says(client, "gpt-4o") == ("second", alone["second"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}),
        ("/responses", {"input": "Hi", "max_output_tokens": 16}),
        ("/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}),
        ("/messages/count_tokens", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/embeddings", {"input": "Hi"}),
        ("/tokenize", {"prompt": "Hi"}),
        ("/fim/completions", {"prompt": "a", "suffix": "b", "max_tokens": 3}),
    ],
    ids=str,
)
def test_every_endpoint_loads_what_it_needs(server: Server, path: str, body: dict[str, Any]) -> None:
    # Whoever was there before, the other one has to be loaded.
    name = "second" if states(server)["first"] == "ready" else "first"
    response = httpx2.post(server.api + path, json={"model": name, **body}, timeout=60)
    assert response.status_code == 200, response.text
    assert states(server)[name] == "ready"


def test_who_answers_is_not_pushed_out(client: OpenAI, server: Server, alone: dict[str, str]) -> None:
    """The stream goes on to its end, and only then the other one is loaded."""
    stream = client.completions.create(
        model="first", prompt="Once", max_tokens=600, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    other: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: other.append(says(client, "second")))
    thread.start()
    rest = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert rest[-1] == "length"
    thread.join(60)
    assert other == [("second", alone["second"])]


def test_memory_is_given_back(client: OpenAI, server: Server) -> None:
    says(client, "first")
    before = held(server, "first")
    for name in ("second", "first", "second", "first"):
        says(client, name)
    assert held(server, "first") < before * 1.5


def held(server: Server, name: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    (line,) = (line for line in lines if line.startswith(f'jackfield_device_memory_bytes{{model_name="{name}"'))
    return float(line.split()[-1])


def test_one_that_is_not_asked_for_leaves(client: OpenAI, server: Server) -> None:
    says(client, "third")
    deadline = threading.Event()
    while states(server)["third"] == "ready":
        deadline.wait(0.1)
    assert states(server)["third"] == "unloaded"
    # Nothing is in memory now, and that is no reason to send nobody here.
    assert httpx2.get(f"{server.url}/ready").status_code == 200
    says(client, "first")


def test_a_broken_one_says_why_and_costs_the_others_nothing(client: OpenAI, server: Server) -> None:
    says(client, "first")
    with pytest.raises(APIStatusError) as caught:
        says(client, "broken")
    assert caught.value.status_code == 500
    assert caught.value.body["code"] == "model_load_error"  # type: ignore[index, call-overload]
    assert reports(server)["broken"]["jackfield"]["state"] == "failed"
    assert "broken" in reports(server)["broken"]["jackfield"]["failure"]
    says(client, "first")


def test_one_that_can_be_seen_to_be_broken_is_not_said_to_be_at_rest(server: Server) -> None:
    told = reports(server)["untold"]["jackfield"]
    assert told["state"] == "failed"
    assert "config.json" in told["failure"]
    assert any("untold cannot be served as it is" in line for line in server.log)


def test_a_name_that_nobody_has(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        says(client, "gpt-5")
    assert caught.value.status_code == 404


def change(server: Server, what: str, name: str) -> httpx2.Response:
    return httpx2.post(f"{server.api}/models/{what}", json={"model": name}, timeout=60)


def test_by_hand(server: Server) -> None:
    loaded = change(server, "load", "gpt-4o")
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["id"] == "second"
    assert loaded.json()["jackfield"]["weights_bytes"] > 0
    assert states(server)["second"] == "ready"
    unloaded = change(server, "unload", "second")
    assert unloaded.json()["jackfield"]["state"] == "unloaded"
    assert "weights_bytes" not in unloaded.json()["jackfield"]
    assert change(server, "unload", "second").status_code == 200
    assert change(server, "load", "gpt-5").json()["error"]["code"] == "model_not_found"
    assert change(server, "load", "broken").json()["error"]["code"] == "model_load_error"


def test_one_that_answers_is_not_unloaded_by_hand(client: OpenAI, server: Server) -> None:
    stream = client.completions.create(
        model="first", prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    refused = change(server, "unload", "first")
    stream.close()
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "model_in_use"


def test_a_small_one_passes_one_that_waits_for_room(client: OpenAI, server: Server) -> None:
    stream = client.completions.create(
        model="first", prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    thread = threading.Thread(target=says, args=(client, "second"))
    thread.start()
    wait = threading.Event()
    while states(server)["second"] != "loading":
        wait.wait(0.05)
    assert says(client, "small")[0] == "small"
    assert states(server) == {**states(server), "first": "ready", "second": "loading", "small": "ready"}
    stream.close()
    thread.join(60)
    assert states(server)["second"] == "ready"


def test_a_download_is_shown_while_others_answer(tiny_model: Path, tmp_path: Path) -> None:
    middle = threading.Event()
    files = {file.name: file.read_bytes() for file in tiny_model.iterdir()}
    lines = ('model = "near"', "[models.near]", f'source = "{tiny_model}"', "[models.far]", 'source = "acme/far"')
    (tmp_path / "jackfield.toml").write_text("\n".join(lines))
    places = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hf" / "hub")}
    hub = hub_server.FakeHub({"acme/far": files}, pauses={"model.safetensors": middle})
    with (
        hub_server.serve(hub),
        serve("near", "--config", str(tmp_path / "jackfield.toml"), HF_ENDPOINT=hub.url, **places) as server,
        OpenAI(base_url=server.api, api_key="none", max_retries=0) as client,
    ):
        try:
            assert states(server)["far"] == "unloaded"
            answers: list[tuple[str, str]] = []
            thread = threading.Thread(target=lambda: answers.append(says(client, "far")))
            thread.start()
            end = time.monotonic() + 60
            while not 0 < reports(server)["far"]["jackfield"].get("progress", 0) < 1:
                assert time.monotonic() < end
                time.sleep(0.05)
            assert states(server) == {"near": "ready", "far": "loading"}
            near = says(client, "near")
            assert states(server)["far"] == "loading"
        finally:
            middle.set()
        thread.join(60)
        assert answers == [("far", near[1])]
        assert states(server) == {"near": "ready", "far": "ready"}
        assert "progress" not in reports(server)["far"]["jackfield"]
