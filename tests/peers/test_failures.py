"""Real servers are left alone, killed and started again behind a Jackfield."""

import os
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import OpenAI
from peer import Peer

QUESTION: Any = [{"role": "user", "content": "Tell a long story."}]
LONG: Any = {"messages": QUESTION, "max_tokens": 1500, "stream": True}


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_client_that_hangs_up_ends_the_work_there(client: OpenAI, peer: Peer) -> None:
    if peer.busy is None:
        pytest.skip("mlx_lm.server does not tell whether it is at work")
    with client.chat.completions.create(model="theirs", **LONG, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
        until(peer.is_at_work)
    until(lambda: not peer.is_at_work())


def test_an_answer_whose_engine_dies_behind_its_server_is_not_taken_for_a_whole_one(client: OpenAI, peer: Peer) -> None:
    if peer.kind != "ray":
        pytest.skip("only Ray Serve lives on without its engine")
    with client.chat.completions.create(model="theirs", **LONG, extra_body={"ignore_eos": True}) as stream:
        chunks = iter(stream)
        while not next(chunks).choices[0].delta.content:
            pass
        [replica] = peer.processes("ray::ServeReplica:default:LLMServer")
        os.kill(replica, 9)
        with pytest.raises(openai.APIError, match="its stream ended before the answer did"):
            list(chunks)
    peer.wait()


def test_a_server_that_dies_and_comes_back(client: OpenAI, peer: Peer) -> None:
    def backend() -> str:
        answer = client.chat.completions.create(
            model="starter", messages=QUESTION, max_tokens=4, extra_body={"jackfield": True}
        )
        return str(answer.model_extra["jackfield"]["backend"]) if answer.model_extra else ""

    assert backend() == "peer"
    with client.chat.completions.create(model="theirs", **LONG, extra_body={"ignore_eos": True}) as stream:
        chunks = iter(stream)
        while not next(chunks).choices[0].delta.content:
            pass
        peer.kill()
        with pytest.raises(openai.APIError, match="Upstream peer failed"):
            list(chunks)
    assert backend() == "mlx"
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="theirs", messages=QUESTION, max_tokens=4)
    assert refused.value.status_code in (502, 503)
    peer.start()
    until(lambda: backend() == "peer")
