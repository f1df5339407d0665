"""Delivery on a scripted clock: retries, backoff, giving up, and what a failing target costs the others."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jackfield.hooks import Event
from jackfield_notify.database import Database
from jackfield_notify.delivery import Backoff, Courier
from jackfield_notify.notification import Notification
from jackfield_notify.outbox import Message, Outbox
from jackfield_notify.targets.outcome import PermanentError, TemporaryError, retry_after
from notify_receivers import ScriptedClock

GIVE_UP = 3600.0


@dataclass
class ScriptedSender:
    """Fails as it is told to, and then delivers."""

    failures: list[Exception] = field(default_factory=list)
    concurrency: int = 2
    ids: list[str] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        self.ids.append(message.id)
        if self.failures:
            raise self.failures.pop(0)

    async def close(self) -> None: ...


@dataclass
class Post:
    """A courier, and all that it works with."""

    outbox: Outbox
    clock: ScriptedClock
    sender: ScriptedSender
    results: list[str] = field(default_factory=list)

    def courier(self, timeout: float = 15) -> Courier:
        return Courier(
            "phone",
            self.sender,
            self.outbox,
            backoff=Backoff(10, 500, chance=lambda: 0.0),
            clock=self.clock,
            timeout=timeout,
            heard=lambda message, result, reason: self.results.append(result),
        )

    def put(self, count: int = 1) -> None:
        told = Notification.of(Event("failed", "error", "It failed."))
        now = self.clock()
        self.outbox.put([Message("phone", told, created=now, due=now, expires=now + GIVE_UP) for _ in range(count)])

    def deliver(self) -> None:
        asyncio.run(self.courier().deliver_due())

    def wait(self) -> float:
        """Let time pass until something is due; how long it was."""
        due = self.outbox.next_due("phone")
        assert due is not None
        waited = due - self.clock.now
        self.clock.now = due
        return waited


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    with closing(Database(tmp_path / "notify.db")) as database:
        yield Post(Outbox(database), ScriptedClock(), ScriptedSender())


def test_a_message_is_tried_again_under_the_same_id_until_it_arrives(post: Post) -> None:
    post.sender.failures = [TemporaryError("busy"), TemporaryError("busy")]
    post.put()
    waits = []
    post.deliver()
    for _ in range(2):
        waits.append(post.wait())
        post.deliver()
    assert waits == [10, 30]
    assert len(post.sender.ids) == 3
    assert len(set(post.sender.ids)) == 1
    assert post.results == ["retried", "retried", "delivered"]
    assert post.outbox.counts()["delivered"] == 1


def test_nothing_is_tried_before_it_is_due(post: Post) -> None:
    post.sender.failures = [TemporaryError("busy")]
    post.put()
    post.deliver()
    post.clock.advance(9)
    post.deliver()
    assert len(post.sender.ids) == 1


def test_what_the_receiver_asks_for_is_honoured(post: Post) -> None:
    post.sender.failures = [TemporaryError("busy", 120)]
    post.put()
    post.deliver()
    assert post.wait() == 120


def test_a_permanent_failure_is_a_dead_letter_at_once(post: Post) -> None:
    post.sender.failures = [PermanentError("The receiver answered 404.")]
    post.put()
    post.deliver()
    [dead] = post.outbox.messages("dead")
    assert (dead.error, dead.attempts, dead.finished) == ("The receiver answered 404.", 1, post.clock.now)
    assert post.results == ["dead"]


def test_a_message_that_never_arrives_is_given_up_in_time(post: Post) -> None:
    post.sender.failures = [TemporaryError("still busy")] * 100
    post.put()
    begun = post.clock.now
    for _ in range(20):
        post.deliver()
        if post.outbox.counts()["dead"]:
            break
        post.wait()
    assert post.clock.now - begun <= GIVE_UP
    [dead] = post.outbox.messages("dead")
    assert dead.error == "still busy"
    # 10, 30, 90, 270 and then 500 seconds between attempts: 6 of those fit into the hour.
    assert dead.attempts == 11


def test_a_mistake_of_ours_is_treated_as_a_failure_that_may_pass(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    post.sender.failures = [ZeroDivisionError("a mistake")]
    post.put()
    post.deliver()
    assert "Unexpected error" in caplog.text
    [queued] = post.outbox.messages("queued")
    assert queued.error == "Unexpected error: ZeroDivisionError."


def test_a_receiver_that_never_answers_costs_an_attempt(post: Post) -> None:
    class Silent(ScriptedSender):
        async def send(self, message: Message) -> None:
            await asyncio.Event().wait()

    post.sender = Silent()
    post.put()
    asyncio.run(post.courier(timeout=0.01).deliver_due())
    [queued] = post.outbox.messages("queued")
    assert queued.error == "No answer within 0.01 seconds."


def test_no_more_are_sent_at_the_same_time_than_the_target_takes(post: Post) -> None:
    class Counting(ScriptedSender):
        now = most = 0

        async def send(self, message: Message) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1

    post.sender = Counting(concurrency=3)
    post.put(10)
    post.deliver()
    assert post.sender.most == 3
    assert post.outbox.counts()["delivered"] == 10


def test_what_is_under_way_when_the_server_ends_goes_back_into_the_queue(post: Post) -> None:
    started = asyncio.Event()

    class Hanging(ScriptedSender):
        async def send(self, message: Message) -> None:
            started.set()
            await asyncio.Event().wait()

    post.sender = Hanging()
    post.put()

    async def interrupt() -> None:
        task = asyncio.create_task(post.courier().run())
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(interrupt())
    [queued] = post.outbox.messages("queued")
    assert (queued.attempts, queued.due <= post.clock.now) == (0, True)


def test_a_courier_that_is_told_to_leave_delivers_what_is_due_first(post: Post) -> None:
    post.put(5)

    async def leave() -> None:
        courier = post.courier()
        task = asyncio.create_task(courier.run())
        await asyncio.sleep(0)
        courier.leave()
        await task

    asyncio.run(leave())
    assert post.outbox.counts()["delivered"] == 5


def test_a_courier_is_woken_by_news(post: Post) -> None:
    idle, arrived = asyncio.Event(), asyncio.Event()

    class Telling(ScriptedSender):
        async def send(self, message: Message) -> None:
            arrived.set()

    class Watched(asyncio.Event):
        async def wait(self) -> Literal[True]:
            idle.set()
            return await super().wait()

    post.sender = Telling()

    async def work() -> None:
        courier = post.courier()
        courier._wanted = Watched()
        task = asyncio.create_task(courier.run())
        await idle.wait()
        post.put()
        courier.wake()
        await asyncio.wait_for(arrived.wait(), 60)
        courier.leave()
        await task

    asyncio.run(work())


@given(
    first=st.floats(0.1, 100), longest=st.floats(0.1, 10_000), attempts=st.integers(1, 10_000), chance=st.floats(0, 1)
)
def test_delays_grow_up_to_the_longest_and_are_spread_over_half_of_it(
    first: float, longest: float, attempts: int, chance: float
) -> None:
    delay = Backoff(first, longest, lambda: chance).delay(attempts, None)
    whole = min(first * 3.0 ** min(attempts - 1, 64), longest)
    assert whole / 2 <= delay <= whole
    assert Backoff(first, longest, lambda: chance).delay(attempts + 1, None) >= delay


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("120", 120),
        ("soon", None),
        ("-5", None),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, 1_800_000_000.0) == seconds  # Friday, 15 January 2027, 08:00:00 GMT
