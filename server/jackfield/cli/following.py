"""What ``jackfield serve`` does as one process of a group that does not lead it: it works for the leader."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import cast

from jackfield.cli.complaint import complain
from jackfield.cli.progress import RichProgress
from jackfield.engine.lockstep import FollowingScheduler
from jackfield.errors import GroupLostError, JackfieldError
from jackfield.group import mpi
from jackfield.group.keeper import AGAIN, end_process, watch_parent
from jackfield.group.member import Follower
from jackfield.group.rank import Rank
from jackfield.hooks.calls import Hooks
from jackfield.models.hub_adapter import fetch_adapter
from jackfield.models.lineup import sole_model
from jackfield.models.service import SchedulerLoader
from jackfield.settings import Settings

logger = logging.getLogger(__name__)

LATE_SECONDS = 5.0
"""How much longer than the leader a follower may take to end."""


def follow(
    rank: Rank, settings: Settings, fetch: Callable[[str], Path], tell: Callable[[str], None], hooks: Hooks
) -> None:
    """Work for the leader until it ends.

    Args:
        rank: this process's.
        settings: its own; some give way to the leader's.
        fetch: finds the model's folder.
        tell: shows lines to whoever started it.
        hooks: may prepare the model.

    Raises:
        JackfieldError: this process cannot serve the model.
    """
    own = settings.of_model(sole_model(settings))
    folder = fetch(own.model)
    for adapter in own.adapters.values():
        fetch_adapter(adapter, RichProgress())

    def lost(reason: str) -> None:
        tell(f"Rank {rank.number} ends: {reason}.")
        end_process(AGAIN)

    closing = threading.Event()
    _end_with_leader(settings.drain_seconds, closing)
    watch_parent(lambda: lost("nobody looks after it"))
    # It may wait for the others in MLX, and not hear that the leader has ended.
    follower = Follower(rank, lost, lambda: _end_after(LATE_SECONDS, closing))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _work(follower, SchedulerLoader(own, folder, tell, hooks.engine, member=follower), closing)
        except BaseException as error:  # also the panics of extensions written in Rust
            failures.append(error)

    # On a thread, since a signal is heard only where Python is at work, and not where MLX waits for the others.
    thread = threading.Thread(target=work, name="jackfield-engine", daemon=True)
    thread.start()
    thread.join()
    if not failures:
        mpi.finish(rank)
    # MLX's own threads are not made for an interpreter that ends.
    end_process(_told(failures[0]) if failures else 0)


def _told(failure: BaseException) -> int:
    """The exit status of a process that has failed, after saying why."""
    if isinstance(failure, JackfieldError):
        complain(failure)
        return failure.exit_status
    logger.error("This process cannot go on.", exc_info=failure)
    return 1


def _work(follower: Follower, load: SchedulerLoader, closing: threading.Event) -> None:
    try:
        scheduler = cast(FollowingScheduler, load())
    except JackfieldError as error:
        follower.failed(error.message)
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        # MLX says so when another process has died meanwhile, or memory was short.
        follower.stumbled(str(error))
        raise GroupLostError(f"{follower.rank} could not load its part: {error}.") from error
    try:
        scheduler.follow()
        closing.set()
        scheduler.close()
    except Exception:
        logger.exception("%s cannot go on.", follower.rank)
        end_process(AGAIN)


def _end_after(seconds: float, closing: threading.Event) -> None:
    """End the process in so many seconds, unless it is ``closing``: then its prefix cache is being written to disk."""

    def end() -> None:
        if not closing.is_set():
            end_process(0)

    late = threading.Timer(seconds, end)
    late.daemon = True
    late.start()


def _end_with_leader(seconds: float, closing: threading.Event) -> None:
    """A signal ends a follower when its leader has had the time to end; a second one at once."""

    def end(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)
        _end_after(seconds + LATE_SECONDS, closing)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
