"""Nothing that was accepted is lost when the process is killed: what a fresh one finds, it delivers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from notify_plugin import plugged
from notify_receivers import Receiver

SECRET = "whsec_" + "QUJD" * 10
CRASHING = Path(__file__).with_name("notify_crashing.py")


def settings(receiver: Receiver) -> dict[str, Any]:
    return {
        "targets": {"ops": {"type": "webhook", "url": receiver.url or "http://127.0.0.1:9", "secret": SECRET}},
        "preferences": {"rules": [{"deduplicate_seconds": 0}]},
    }


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that works on the outbox until it is killed."""
    with subprocess.Popen(
        [sys.executable, str(CRASHING), str(folder), json.dumps(settings(Receiver())), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_all_that_was_accepted_before_a_kill_is_delivered_after_it(tmp_path: Path) -> None:
    with process(tmp_path) as running:
        assert running.stdout is not None
        for _ in range(20):
            running.stdout.readline()
        running.kill()  # SIGKILL, somewhere in the middle of whatever it does
        accepted = 20 + len(running.stdout.read().splitlines())
    arrived: dict[int, set[str]] = {}
    with Receiver().listening() as receiver, plugged(tmp_path, settings(receiver)):
        while not set(range(accepted)) <= set(arrived):
            got = receiver.next()
            number = json.loads(got.body)["data"]["details"]["number"]
            arrived.setdefault(number, set()).add(got.headers["webhook-id"])
    assert all(len(ids) == 1 for ids in arrived.values())
    assert list(tmp_path.glob("*damaged*")) == []


def test_what_was_in_flight_at_the_kill_is_sent_at_once_under_the_same_id(tmp_path: Path) -> None:
    with process(tmp_path, "in-flight") as running:
        assert running.stdout is not None
        leased = running.stdout.readline().strip()
        running.kill()
    # Its lease would have lasted an hour.
    with Receiver().listening() as receiver, plugged(tmp_path, settings(receiver)):
        assert receiver.next().headers["webhook-id"] == leased
