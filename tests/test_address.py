"""Hosts and ports as they stand in URLs."""

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from jackfield.address import place
from jackfield.cli import server


@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "127.0.0.1:1"), ("localhost", "localhost:1"), ("::1", "[::1]:1")]
)
def test_a_host_and_a_port(host: str, written: str) -> None:
    assert place(host, 1) == written


def test_people_and_plugins_are_told_an_address_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(server, "tell", told.append)
    host = SimpleNamespace(url="")
    router = SimpleNamespace(lifespan_context=lambda app: nullcontext())
    app: Any = SimpleNamespace(state=SimpleNamespace(host=host), router=router)
    lineup: Any = SimpleNamespace(registry=SimpleNamespace(entries=[SimpleNamespace(id="m")]))
    listener: Any = SimpleNamespace(getsockname=lambda: ("::1", 8080, 0, 0), listen=lambda backlog: None)

    async def opened() -> None:
        async with server._open(app, lineup, listener):
            pass

    asyncio.run(opened())
    assert (host.url, told) == ("http://[::1]:8080", ["Serving m on http://[::1]:8080/v1"])
