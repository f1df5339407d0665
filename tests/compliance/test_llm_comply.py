"""The compliance suite of PyPI's ``llm-comply``, which nobody here wrote, against the real starter model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from serving import Server, serve

FORMATS = {"openai-chat": "chat-image-input", "open-responses": "image-input", "anthropic": "anth-image-input"}
"""Each with its case that needs a model that sees."""
ELSEWHERE = {"compact-response"}
"""Cases about endpoints that are not here: they take a 404, and warn."""


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The starter, always taking the most likely token: by chance it may talk until its context is full."""
    folder = tmp_path_factory.mktemp("greedy") / "starter"
    folder.mkdir()
    for file in starter.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    greedy = json.loads((starter / "generation_config.json").read_text()) | {"temperature": 0}
    (folder / "generation_config.json").write_text(json.dumps(greedy))
    with serve(folder) as server:
        yield server


@pytest.fixture(scope="module", params=FORMATS)
def results(request: pytest.FixtureRequest, server: Server) -> tuple[str, dict[str, dict[str, Any]]]:
    """The case with an image, and what became of each case."""
    target = ["-u", server.api, "-k", "any", "-m", server.model]
    done = subprocess.run(
        [sys.executable, "-m", "llm_comply.cli", "--format", request.param, *target, "--timeout", "120", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return FORMATS[request.param], {result["id"]: result for result in json.loads(done.stdout)["results"]}


def test_all_cases_pass_but_those_with_images(results: tuple[str, dict[str, dict[str, Any]]]) -> None:
    image, found = results
    assert len(found) >= 9
    failed = {name: result.get("errors") for name, result in found.items() if result["status"] == "failed"}
    assert failed.keys() == {image}, failed


def test_none_passes_with_a_warning(results: tuple[str, dict[str, dict[str, Any]]]) -> None:
    warned = {name: result["warnings"] for name, result in results[1].items() if result.get("warnings")}
    assert warned.keys() <= ELSEWHERE, warned


def test_the_case_with_an_image_gets_a_400(results: tuple[str, dict[str, dict[str, Any]]]) -> None:
    image, found = results
    first, *_ = found[image]["errors"]
    assert first == "HTTP 400 (expected [200])"


def test_an_image_is_refused_clearly(server: Server) -> None:
    with OpenAI(base_url=server.api, api_key="any", max_retries=0) as client:
        content = [
            {"type": "text", "text": "Describe this image briefly."},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}},
        ]
        with pytest.raises(BadRequestError) as caught:
            client.chat.completions.create(model="starter", messages=[{"role": "user", "content": content}])
    assert caught.value.param == "messages.0.content.1"
    assert "image" in caught.value.message
    assert caught.value.body["suggestions"]
