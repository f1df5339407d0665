"""Minutes of everything at once, with clients that hang up whenever they like: nothing fails, and nothing stays behind.

The soak is about limits that are too tight for what is asked; here there is room for all.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from test_soak import complaints, left_over, show_all, soak
from visitors import Tally
from watch import Look, Watch

from serving import serve

CACHE_BYTES = 16 << 20
"""For the prefix cache, in memory and on disk, so that it is full when the memory is looked at for the first time."""
FIRST_SECONDS = 60.0
"""Much happens for the first time only: what this while leaves behind is what the rest may leave. After less than it,
memory has not come to rest, and tells nothing."""
GROWTH = 1.25
"""Of resident memory at rest, which goes up and down by tens of megabytes with what allocators keep just then."""


def test_mixed_load_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    tally = Tally()
    sizes = dict.fromkeys(("JACKFIELD_PREFIX_CACHE_BYTES", "JACKFIELD_PREFIX_CACHE_DISK_BYTES"), str(CACHE_BYTES))
    with serve(tiny_model, **sizes, JACKFIELD_CACHE_DIR=str(tmp_path)) as server:
        watch = Watch(server, tmp_path)
        seconds = float(os.environ["FAULT_SECONDS"])
        first = min(FIRST_SECONDS, seconds / 2)
        new, before = asyncio.run(soak(server, watch, tally, first))
        _, after = asyncio.run(soak(server, watch, tally, seconds - first))
        log = "".join(server.log)
    show_all(watch, tally)
    problems = [
        *tally.problems,
        *refused(tally),
        *left_over(new, after),
        *(larger(before, after) if first == FIRST_SECONDS else ()),
        *complaints(log),
    ]
    assert not problems, "\n".join(problems)
    assert tally.sum("hung up"), "nobody hung up"


def refused(tally: Tally) -> Iterator[str]:
    """Requests that got a 5xx, but for those that set themselves a time which was too short."""
    for (kind, outcome), times in tally.outcomes.items():
        if outcome == "memory_pressure" or (outcome == "deadline_exceeded" and kind != "deadline"):
            yield f"{kind}: {times} times {outcome}"


def larger(before: Look, after: Look) -> Iterator[str]:
    """Memory that is not back where it was."""
    if after.rss_bytes > GROWTH * before.rss_bytes:
        yield f"resident memory was {before.rss_bytes:,} before the load, and is {after.rss_bytes:,}"
