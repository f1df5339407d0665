"""The compliance suite of PyPI's ``llm-comply``, which nobody here wrote, against the real starter model."""

import json
import subprocess
import sys
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from serving import Server

IMAGE = "chat-image-input"


@pytest.fixture(scope="module")
def results(starter_server: Server) -> dict[str, dict[str, Any]]:
    """What became of each case."""
    target = ["-u", starter_server.api, "-k", "any", "-m", starter_server.model]
    done = subprocess.run(
        [sys.executable, "-m", "llm_comply.cli", "--format", "openai-chat", *target, "--timeout", "120", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return {result["id"]: result for result in json.loads(done.stdout)["results"]}


def test_all_cases_pass_but_those_with_images(results: dict[str, dict[str, Any]]) -> None:
    assert len(results) >= 9
    failed = {name: result.get("errors") for name, result in results.items() if result["status"] == "failed"}
    assert failed.keys() == {IMAGE}, failed


def test_none_passes_with_a_warning(results: dict[str, dict[str, Any]]) -> None:
    warned = {name: result["warnings"] for name, result in results.items() if result.get("warnings")}
    assert warned == {}


def test_the_case_with_an_image_gets_a_400(results: dict[str, dict[str, Any]]) -> None:
    first, *consequences = results[IMAGE]["errors"]
    assert first == "HTTP 400 (expected [200])"
    assert all(one.startswith("response.") for one in consequences)


def test_an_image_is_refused_clearly(starter_server: Server) -> None:
    with OpenAI(base_url=starter_server.api, api_key="any", max_retries=0) as client:
        content = [
            {"type": "text", "text": "Describe this image briefly."},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}},
        ]
        with pytest.raises(BadRequestError) as caught:
            client.chat.completions.create(model="starter", messages=[{"role": "user", "content": content}])
    assert caught.value.param == "messages.0.content.1"
    assert "image" in caught.value.message
    assert caught.value.body["suggestions"]
