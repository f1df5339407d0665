"""Servers that many tests share: starting one takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_upstream import FaultyUpstream, faulty_upstream
from serving import Server, serve

pytest_plugins = ["model_fixtures"]

SLOWEST = (
    "test_openai_sdk.py",
    "test_tool_calls.py",
    "test_hang_up.py",
    "test_plugins_new.py",
    "test_service.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files come first: of two workers, neither is to wait for the other one in the end."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def starter_server(starter: Path) -> Iterator[Server]:
    """The real starter model."""
    with serve("starter", "--max-batch", "8") as server:
        yield server


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyUpstream]:
    """A server that fails as it is told to."""
    with faulty_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Path) -> Iterator[Server]:
    """A random model of two layers: garbage at thousands of tokens a second."""
    with serve(tiny_model) as server:
        yield server
