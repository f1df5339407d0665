"""Servers that many tests share: starting one takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Server, serve

pytest_plugins = ["model_fixtures"]


@pytest.fixture(scope="session")
def starter_server(starter: Path) -> Iterator[Server]:
    """The real starter model."""
    with serve("starter", "--max-batch", "8") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Path) -> Iterator[Server]:
    """A random model of two layers: garbage at thousands of tokens a second."""
    with serve(tiny_model) as server:
        yield server
