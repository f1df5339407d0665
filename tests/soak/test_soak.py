"""Configured limits hold while a dozen clients do what they like for minutes, and nothing grows without bound.

make soak                                         ten minutes
make soak SOAK_SECONDS=180 SOAK_JSON=soak.json    three, and every sample into a file
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table
from visitors import BUSY, CHAT, QUESTIONS, Tally, Visitor
from watch import Look, Watch

from serving import Server, serve

CONTEXT_LENGTH = 4096
MAX_BATCH, MAX_QUEUE = 8, 16
ROOM = 1.3
"""Of the keys and values of one full context, for all requests and the prefix cache: some have to make way."""
CACHE_SHARE, DISK_SHARE = 0.3, 0.6
"""What the prefix cache may take, in memory and on disk; of the same."""
VISITORS = 12
GRACE_SECONDS = 30
"""For answers that are still coming when the time is over; then the clients hang up."""
GROWTH = 1.1
"""Of resident memory, from the second quarter of the time to the last."""
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""asyncio.to_thread starts them one by one, as they are needed, and keeps them."""
TELL_SECONDS = 15
CROWD = MAX_BATCH
"""Clients at the beginning whose long answers outgrow the memory together; they stay until that has been seen."""
CROWD_SECONDS = 300
"""A soak that is shorter need not have seen it: on a busy machine long answers take long."""


@dataclass(frozen=True)
class Limits:
    """What the server is told to keep to."""

    memory: int
    cache: int
    disk: int

    def environment(self, folder: Path) -> dict[str, str]:
        """As the server reads them."""
        return {
            "JACKFIELD_MEMORY_LIMIT": str(self.memory),
            "JACKFIELD_PREFIX_CACHE_BYTES": str(self.cache),
            "JACKFIELD_PREFIX_CACHE_DISK_BYTES": str(self.disk),
            "JACKFIELD_CACHE_DIR": str(folder),
            "JACKFIELD_CONTEXT_LENGTH": str(CONTEXT_LENGTH),
            "JACKFIELD_MAX_BATCH": str(MAX_BATCH),
            "JACKFIELD_MAX_QUEUE": str(MAX_QUEUE),
        }


def test_limits_hold_and_nothing_grows(starter: Path, tmp_path: Path) -> None:
    limits = tight_limits(starter)
    tally = Tally()
    with serve(starter, **limits.environment(tmp_path)) as server:
        watch = Watch(server, tmp_path)
        before, after = asyncio.run(soak(server, watch, tally, float(os.environ["SOAK_SECONDS"])))
        log = "".join(server.log)
    keep(watch, tally, limits)
    show(watch, tally, limits)
    problems = [
        *tally.problems,
        *over_limits(watch.looks, limits),
        *left_over(before, after),
        *growing(watch.looks),
        *complaints(log),
        *no_pressure(watch),
    ]
    assert not problems, "\n".join(problems)


def tight_limits(model: Path) -> Limits:
    """Room for little more than one request of full length, whatever the weights take on this machine."""
    command = [sys.executable, "-m", "jackfield", "doctor", str(model), "--json"]
    flags = ["--context-length", str(CONTEXT_LENGTH), "--max-batch", str(MAX_BATCH)]
    plan = json.loads(subprocess.run([*command, *flags], capture_output=True, text=True, check=True).stdout)
    sequence = plan["sequence_bytes"]
    return Limits(
        memory=int(plan["weights_bytes"] + plan["workspace_bytes"] + ROOM * sequence),
        cache=int(CACHE_SHARE * sequence),
        disk=int(DISK_SHARE * sequence),
    )


async def soak(server: Server, watch: Watch, tally: Tally, seconds: float) -> tuple[Look, Look]:
    """Let visitors in for some time; returns how things stand before and after."""
    Console().print("Warming up ...")
    answers = await warm_up(server, tally)
    before = await watch.until_idle()
    watch.began = time.monotonic()
    looking = asyncio.create_task(watch.keep_looking())
    telling = asyncio.create_task(tell(watch, tally, seconds))
    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None)) as http:
        visitors = [Visitor(number, server, http, tally) for number in range(VISITORS)]
        for visitor in visitors:
            visitor.known = answers
        until = time.monotonic() + seconds
        staying = [asyncio.create_task(visitor.stay(until)) for visitor in visitors]
        staying.append(asyncio.create_task(crowd(server, http, watch, tally)))
        await asyncio.wait(staying, timeout=seconds + GRACE_SECONDS)
        for task in (*staying, looking, telling):
            task.cancel()
        ends = await asyncio.gather(*staying, looking, telling, return_exceptions=True)
    tally.problems += [f"{type(end).__name__}: {end}" for end in ends if isinstance(end, Exception)]
    after = await watch.until_idle()
    if (again := await known_answers(server, tally)) != answers:
        tally.problems.append(f"after the soak the same questions are answered with {again} instead of {answers}")
    return before, after


async def crowd(server: Server, http: httpx2.AsyncClient, watch: Watch, tally: Tally) -> None:
    """Clients with long answers, until somebody has had to make room."""
    tellers = [Visitor(100 + number, server, http, tally) for number in range(CROWD)]
    stories = [asyncio.create_task(teller.tells_a_story()) for teller in tellers]
    try:
        while not all(story.done() for story in stories) and not watch.preemptions:
            await asyncio.wait(stories, timeout=1)
    finally:
        for story in stories:
            story.cancel()
        await asyncio.gather(*stories, return_exceptions=True)


async def warm_up(server: Server, tally: Tally) -> list[str]:
    """Have everything happen that happens only once, threads and files included; returns the known answers."""
    async with httpx2.AsyncClient() as http:
        visitor = Visitor(VISITORS, server, http, Tally())
        await asyncio.gather(*(visitor.wants_one_token() for _ in range(MAX_BATCH)))
        for behaviour in (visitor.wants_json, visitor.wants_logprobs, visitor.scores):
            await behaviour()
    return await known_answers(server, tally)


async def known_answers(server: Server, tally: Tally) -> list[str]:
    """What the server says to the questions whose answers do not change, while nobody else asks."""
    async with httpx2.AsyncClient() as http:
        visitor = Visitor(VISITORS + 1, server, http, tally)
        answers = [await visitor.ask("known answer", CHAT, question) for question in QUESTIONS]
    return [answer.text if answer else "" for answer in answers]


# --- What must hold ---------------------------------------------------------------------------------------------------


def over_limits(looks: Sequence[Look], limits: Limits) -> Iterator[str]:
    """Budgets that were not kept at some moment."""
    # No tolerance: the activations of a step are part of the limit, as the plan's workspace.
    bounds = {
        "cache_memory_bytes": limits.cache,
        "cache_disk_bytes": limits.disk,
        "folder_bytes": limits.disk,
        "device_bytes": limits.memory,
        "running": MAX_BATCH,
        "waiting": MAX_QUEUE + MAX_BATCH,
    }
    for name, bound in bounds.items():
        worst = max(looks, key=lambda look: getattr(look, name))
        if getattr(worst, name) > bound:
            yield f"{name} was {getattr(worst, name):,.0f} of {bound:,} at {worst.seconds:.0f} s"


def left_over(before: Look, after: Look) -> Iterator[str]:
    """What an idle server still holds that it did not hold before."""
    if after.kv_bytes:
        yield f"keys and values of {after.kv_bytes:,.0f} bytes are held for nobody"
    for name, more in (("files", 0), ("threads", POOL_THREADS), ("restarts", 0)):
        if getattr(after, name) > getattr(before, name) + more:
            yield f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"


def growing(looks: Sequence[Look]) -> Iterator[str]:
    """Memory that grows on and on."""
    quarter = len(looks) // 4
    early, late = (max(look.rss_bytes for look in part) for part in (looks[quarter : 2 * quarter], looks[-quarter:]))
    if late > GROWTH * early:
        yield f"resident memory grew from {early:,} in the second quarter to {late:,} in the last"


def no_pressure(watch: Watch) -> Iterator[str]:
    """A soak in which nobody had to make room has not shown that this goes well."""
    if not watch.preemptions and watch.looks[-1].seconds > CROWD_SECONDS:
        yield "nobody had to make room: the long answers did not outgrow the memory"


def complaints(log: str) -> Iterator[str]:
    """Lines of the log that nobody should see."""
    words = ("ERROR", "Traceback", "CRITICAL", "Exception")
    yield from (f"log: {line}" for line in log.splitlines() if any(word in line for word in words))


# --- What people see --------------------------------------------------------------------------------------------------


async def tell(watch: Watch, tally: Tally, seconds: float) -> None:
    """A line that changes on a terminal, else one every now and then."""
    console = Console()
    with console.status("soaking") as status:
        for second in range(1 << 30):
            await asyncio.sleep(1)
            if not watch.looks:
                continue
            line = told(watch.looks[-1], tally, seconds)
            status.update(line)
            if not console.is_terminal and second % TELL_SECONDS == 0:
                console.print(line, highlight=False)


def told(look: Look, tally: Tally, seconds: float) -> str:
    """How it stands, on one line."""
    return (
        f"{look.seconds:.0f} of {seconds:.0f} s: {sum(tally.outcomes.values())} requests, {len(tally.problems)} wrong, "
        f"{look.running:.0f} answered now, {look.waiting:.0f} waiting, device {look.device_bytes / 1e6:.0f} MB, "
        f"resident {look.rss_bytes / 1e6:.0f} MB, memory {look.pressure}"
    )


def show(watch: Watch, tally: Tally, limits: Limits) -> None:
    """How the requests ended, the least and most of everything, and what was allowed."""
    show_all(watch, tally)
    told = ", ".join(f"{name} {readable('bytes', value)}" for name, value in asdict(limits).items())
    Console().print(told, style="dim")


def show_all(watch: Watch, tally: Tally) -> None:
    """The same without the limits."""
    console = Console()
    outcomes = sorted({outcome for _, outcome in tally.outcomes})
    requests = Table("requests", *outcomes)
    for kind in sorted({kind for kind, _ in tally.outcomes}):
        requests.add_row(kind, *(str(tally.outcomes[kind, outcome] or "") for outcome in outcomes))
    sums = [tally.sum(outcome) for outcome in outcomes]
    requests.add_row("all", *map(str, sums), style="bold")
    console.print(requests)
    held = Table("", "least", "median", "most", "at the end")
    for name, value in asdict(watch.looks[0]).items():
        if name != "seconds" and not isinstance(value, str):
            values = [getattr(look, name) for look in watch.looks]
            ordered = sorted(values)
            figures = (ordered[0], ordered[len(ordered) // 2], ordered[-1], values[-1])
            held.add_row(name, *(readable(name, figure) for figure in figures))
    console.print(held)


def readable(name: str, value: float) -> str:
    """Bytes in MB, the rest as it is."""
    return f"{value / 1e6:.1f} MB" if name.endswith("bytes") else f"{value:g}"


def keep(watch: Watch, tally: Tally, limits: Limits) -> None:
    """Everything into the file that SOAK_JSON names."""
    if file := os.environ.get("SOAK_JSON"):
        outcomes: dict[str, Any] = {f"{kind}: {ended}": n for (kind, ended), n in sorted(tally.outcomes.items())}
        looks = [asdict(look) for look in watch.looks]
        last = watch.looks[-1]
        kept = {
            "limits": asdict(limits),
            "preemptions": last.preemptions,
            "refusals": {code: tally.sum(code) for _, code in sorted(BUSY)},
            "restarts": last.restarts,
            "outcomes": outcomes,
            "problems": tally.problems,
            "looks": looks,
        }
        Path(file).write_text(json.dumps(kept, indent=1) + "\n")
