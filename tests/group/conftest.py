"""Groups of processes take the cores of a small machine for minutes: these tests run as `make test-group` does."""

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from group_model import write_group_model
from serving import serve

if "GROUP_TESTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def model(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all groups serve."""
    return write_group_model(starter, tmp_path_factory.mktemp("models") / "group-model")


@pytest.fixture(scope="session")
def alone(model: Path) -> Iterator[openai.OpenAI]:
    """The same in one process."""
    with serve(model) as server, openai.OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        yield client
