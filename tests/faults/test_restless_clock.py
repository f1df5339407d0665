"""The same for a whole server whose clock tells another day each time it is looked at."""

import json
import os
from pathlib import Path

from caller import ask, post

from serving import serve

DAY = 86_400
RESTLESS = """
import itertools, time

def restless(real, unit):
    jumps = itertools.cycle([0, {day}, -{day}, 3600, -3600])
    return lambda: real() + type(real())(next(jumps) * unit)

time.time, time.time_ns = restless(time.time, 1), restless(time.time_ns, 10**9)
"""


def test_a_server_whose_clock_never_rests(tiny_model: Path, tmp_path: Path) -> None:
    """Each look at it tells another day: the engine, its caches in memory and on disk, and what is stored."""
    (tmp_path / "sitecustomize.py").write_text(RESTLESS.format(day=DAY))
    environment = {
        "PYTHONPATH": ":".join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JACKFIELD_CACHE_DIR": str(tmp_path),
        "JACKFIELD_PREFIX_CACHE_BYTES": str(1 << 20),
        "JACKFIELD_PREFIX_CACHE_DISK_BYTES": str(4 << 20),
    }
    with serve(tiny_model, **environment) as server:
        questions = [" ".join(f"{number} {word}" for word in range(300)) for number in range(5)]
        answers = []
        for _ in range(2):
            for question in questions:
                body = {"prompt": question, "max_tokens": 4, "temperature": 0, "timeout": 50}
                status, answer = post(server, "/v1/completions", body)
                assert status == 200
                answers.append(json.loads(answer)["choices"][0]["text"])
        assert answers[:5] == answers[5:]
        status, answer = post(server, "/v1/responses", {"input": "hi", "store": True, "max_output_tokens": 16})
        assert status == 200
        told = json.loads(answer)
        assert ask(server, "GET", f"/v1/responses/{told['id']}")[0] == 200
        assert not [line for line in server.log if "Traceback" in line or line.startswith(("ERROR", "WARNING"))]
