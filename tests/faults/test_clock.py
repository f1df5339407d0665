"""A wall clock that jumps: only dates are told by it. What is waited for, limited or put in order is not."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from jackfield.testing import JackfieldServer, StartServer

DAY = 86_400.0
YEARS = 10 * 365 * DAY


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the clock forward or back by so many seconds."""
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])

    def jump(seconds: float) -> None:
        offset[0] += seconds

    return jump


def test_what_is_under_way_goes_on(jackfield_server: StartServer, jump: Callable[[float], None]) -> None:
    server = jackfield_server()
    server.says("The clock strikes thirteen.")
    with ExitStack() as streams:
        with server.held():
            chunks = streams.enter_context(server.streaming("hi", timeout=50))
            next(chunks)
            for seconds in (YEARS, -2 * YEARS):
                jump(seconds)
                server.says("Next.")
                waiting = streams.enter_context(server.streaming("hi", timeout=50))
                next(waiting)
        said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert said.endswith("thirteen.")
    jump(YEARS)
    assert server.chat("hi", timeout=50).status == 200
    assert server.get("/ready").status == 200


def test_stored_responses_stay_when_the_clock_is_put_right(
    jackfield_server: StartServer, jump: Callable[[float], None]
) -> None:
    """A jump by more than they are kept is as so much time: only a clock tells how old they are."""
    server = jackfield_server(stored_responses_days=30)
    names: list[str] = []
    for seconds in (0, DAY, -20 * DAY, 19 * DAY, -YEARS, YEARS - DAY):
        jump(seconds)
        assert [name for name in names if server.get(f"/v1/responses/{name}").status != 200] == []
        if abs(seconds) < YEARS / 2:
            names.append(stored(server, names[-1] if names else None))


def stored(server: JackfieldServer, previous: str | None) -> str:
    asked = {"model": "scripted", "input": "hi", "store": True, "previous_response_id": previous}
    reply = server.post("/v1/responses", asked)
    assert reply.status == 200
    return str(json.loads(reply.text)["id"])
