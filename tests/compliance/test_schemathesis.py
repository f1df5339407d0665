"""Schemathesis makes up requests from ``openapi.yaml``, right and wrong ones; all get answers that it declares."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from contract import DOCUMENT
from serving import Server

CHECKS = [
    "not_a_server_error",
    "response_schema_conformance",
    "negative_data_rejection",
    "status_code_conformance",
    "content_type_conformance",
]


@pytest.fixture(scope="module")
def run(tiny_server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Counter[tuple[str, int]]]:
    """What Schemathesis says, and how often each path gave each status."""
    folder = tmp_path_factory.mktemp("schemathesis")
    report = folder / "report.har"
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(DOCUMENT), "--url", tiny_server.url]
    # It is refused whatever is sent, which Schemathesis finds suspicious.
    command += ["--exclude-operation-id", "cancelResponse"]
    # Those without the prefix are the same, which test_routes.py and test_openapi_document.py hold them to.
    command += ["--exclude-path-regex", "^/(?!v1/|health$|ready$|metrics$)"]
    command += ["--phases", "coverage,fuzzing", "--mode", "all", "--checks", ",".join(CHECKS)]
    # The same requests every time, and none that are kept for the next run.
    command += ["--max-examples", "20", "--generation-deterministic", "--request-timeout", "60", "--no-color"]
    done = subprocess.run(
        [*command, "--report-har-path", str(report)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "SCHEMATHESIS_MODEL": tiny_server.model,
            "SCHEMATHESIS_URL": tiny_server.url,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout
    entries = json.loads(report.read_text(encoding="utf-8"))["log"]["entries"]
    paths = (entry["request"]["url"].removeprefix(tiny_server.url) for entry in entries)
    return done.stdout, Counter((path, entry["response"]["status"]) for path, entry in zip(paths, entries, strict=True))


def test_nothing_breaks_the_contract(run: tuple[str, Counter[tuple[str, int]]]) -> None:
    said, _ = run
    assert "No issues found" in said, said


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        ("/chat/completions", 10, 100),
        ("/completions", 10, 100),
        ("/fim/completions", 10, 100),
        ("/infill", 50, 100),
        ("/responses", 10, 100),
        ("/messages", 5, 100),
        ("/messages/count_tokens", 5, 50),
        ("/embeddings", 10, 30),
        ("/tokenize", 5, 50),
        ("/detokenize", 1, 10),
        ("/apply-template", 5, 50),
    ],
)
def test_right_and_wrong_requests_were_among_them(
    run: tuple[str, Counter[tuple[str, int]]], path: str, right: int, wrong: int
) -> None:
    _, answers = run
    assert answers[f"/v1{path}", 200] >= right
    assert answers[f"/v1{path}", 400] >= wrong
