"""The process that ``mlx.launch`` starts, which starts another one to do the work.

It starts that one anew when it was killed, or has ended because the group fell apart. All others end then, too, so the
group comes together again without its launcher's help, where the backend can do that. Nothing here imports MLX.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import click

from jackfield.errors import GroupLostError

AGAIN = GroupLostError.exit_status

FAILED_TRIAL = 70
"""The exit status of a leader whose model could not be loaded and tried out, since one process failed alone;
EX_SOFTWARE of BSD's sysexits.h."""

TRIALS = 3
"""After so many in a row it was not by chance, such as memory that was short for a while."""

PAUSES = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Seconds before the work is begun anew: after the first time, the second in a row, and so on."""

GOOD_SECONDS = 60.0
"""After so long the next time is the first one again."""

PARTING_SECONDS = 10.0
"""How long a follower that is gone lets the leader still tell its clients, and end."""

LOOK_SECONDS = 1.0
"""How often it is looked whether the process is still there that has started this one."""

PARENT = "_JACKFIELD_PARENT"
"""The number of that process."""


def does_the_work(environment: Mapping[str, str]) -> bool:
    """Whether this process has been started by `keep_up`."""
    return environment.get(PARENT) == str(os.getppid())


def keep_up(command: Sequence[str]) -> int:
    """Run the command, again and again as long as it asks for that or is killed; returns its exit status at the end.

    When the model could not be loaded and tried out, it is run again a few times only.
    """
    ending = threading.Event()
    failures = trials = 0
    while True:
        began = time.monotonic()
        status = _run(command, ending)
        trials = trials + 1 if status == FAILED_TRIAL else 0
        again = status == AGAIN or status < 0 or 0 < trials < TRIALS
        if ending.is_set() or not again:
            if trials == TRIALS:
                click.echo(
                    f"jackfield: the group is given up: loading the model failed {TRIALS} times in a row.", err=True
                )
            return 0 if again else status
        failures = 1 if time.monotonic() - began > GOOD_SECONDS else failures + 1
        pause = PAUSES[min(failures, len(PAUSES)) - 1]
        click.echo(f"jackfield: the group is started anew in {pause:g} s.", err=True)
        if ending.wait(pause):
            return 0


def see_through(command: Sequence[str], leads: bool) -> int:
    """Run the command once; returns its exit status, `AGAIN` if it was killed.

    For launchers that end all processes when one has ended, to start all anew. The leader is still to tell its clients.
    """
    ending = threading.Event()
    status = _run(command, ending)
    lost = status == AGAIN or status < 0
    if not lost or ending.is_set():
        return max(status, 0)
    if not leads:
        ending.wait(PARTING_SECONDS)
    return AGAIN


def _run(command: Sequence[str], ending: threading.Event) -> int:
    child: subprocess.Popen[bytes] | None = None

    def end(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            ending.set()
        if child is not None:
            child.send_signal(signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    # A session of its own: what a terminal sends to all comes from here, once.
    child = subprocess.Popen(command, env={**os.environ, PARENT: str(os.getpid())}, start_new_session=True)  # noqa: S603 - itself
    if ending.is_set():
        child.terminate()
    return child.wait()


def watch_parent(orphaned: Callable[[], None]) -> None:
    """Call ``orphaned`` once, on a thread, when the process that started this one is gone."""
    parent = os.environ[PARENT]

    def look() -> None:
        while str(os.getppid()) == parent:
            time.sleep(LOOK_SECONDS)
        orphaned()

    threading.Thread(target=look, name="jackfield-parent", daemon=True).start()


def end_process(status: int) -> None:
    """At once, whatever hangs in it."""
    logging.shutdown()
    os._exit(status)
