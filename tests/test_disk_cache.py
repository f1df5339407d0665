"""The prefix cache on disk: what is read is what was written, or nothing; and nobody ever waits or fails for it."""

import errno
import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from clock import clock_of
from jackfield.engine import disk_cache, disk_format
from jackfield.engine.blocks import Record, chain
from jackfield.engine.disk_cache import DiskCache, identity_of
from jackfield.engine.disk_format import decode, encode

LINKS = chain(range(32 * 40))
SIZE = 1000


def record(number: int = 0, kind: str = "kv", size: int = SIZE) -> Record:
    return Record(kind, LINKS[number], "[]", (("uint8", (size,)),), (bytes([number]) * size,))


def file_size(number: int = 0) -> int:
    return sum(len(part) for part in encode(record(number), "model"))


def write(cache: DiskCache, *records: Record) -> None:
    """Write and wait until that has happened."""
    for age, one in enumerate(records):
        assert cache.wants(one.key, one.nbytes)
        cache.write(one, age)
    settle(cache)


def settle(cache: DiskCache) -> None:
    with cache._changed:
        assert cache._changed.wait_for(lambda: not cache._queue, 10)
    # By then what was being done is over, and deletions go before reads.
    read(cache)


def read(cache: DiskCache, *records: Record) -> list[Record]:
    reading = cache.read([one.key for one in records])
    assert reading.done.wait(10)
    return reading.records


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def opened(tmp_path):
    """Open caches in one folder, as several servers would."""
    caches = []

    def open_(identity="model", budget=1 << 20, folder=tmp_path / "cache", **more) -> DiskCache:
        caches.append(DiskCache(folder, budget, identity, **more))
        read(caches[-1])
        return caches[-1]

    yield open_
    for cache in caches:
        cache.close(5)
        assert not cache._thread.is_alive()


def test_what_was_written_is_read_by_the_next_server(opened):
    first = opened()
    write(first, record(0), record(1), record(1, "state"))
    assert first.nbytes == sum(path.stat().st_size for path in files(first.folder))
    first.close()
    second = opened()
    assert second.holds(record(1).key)
    assert not second.holds(record(2).key)
    assert read(second, record(0), record(1), record(1, "state")) == [record(0), record(1), record(1, "state")]
    assert second.nbytes == first.nbytes


def test_another_model_finds_nothing(opened):
    write(opened(), record())
    other = opened("other model")
    assert not other.holds(record().key)
    assert read(other, record()) == []


def test_reading_ends_at_the_first_block_that_is_not_there(opened):
    cache = opened()
    write(cache, record(0), record(2))
    assert read(cache, record(0), record(1), record(2)) == [record(0)]


def test_prompts_are_private(opened):
    old = os.umask(0)
    try:
        cache = opened()
        write(cache, record())
    finally:
        os.umask(old)
    for path in cache.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_a_folder_somebody_else_made_stays_as_it_is_but_its_blocks_are_private(opened, tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    (folder / "notes.txt").write_text("mine")
    cache = opened(folder=folder, budget=2 * file_size(10))
    write(cache, *(record(number) for number in range(10, 15)))
    assert cache.evictions > 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert (folder / "notes.txt").read_text() == "mine"
    assert stat.S_IMODE(cache._own.stat().st_mode) == 0o700


DATA = b"".join(encode(record(), "model"))


@pytest.mark.parametrize("position", [*range(0, len(DATA), 37), len(DATA) - 1])
def test_no_bit_may_be_wrong(position):
    damaged = bytearray(DATA)
    damaged[position] ^= 1 << position % 8
    with pytest.raises(ValueError, match="damaged"):
        decode(bytes(damaged), record().key, "model")


@pytest.mark.parametrize("length", [0, 1, 15, 16, 47, 48, 49, 300, len(DATA) - 33, len(DATA) - 1])
def test_no_byte_may_be_missing(length):
    with pytest.raises(ValueError, match="damaged"):
        decode(DATA[:length], record().key, "model")
    with pytest.raises(ValueError, match="damaged"):
        decode(DATA + bytes(length + 1), record().key, "model")


def test_a_file_of_another_model_version_or_block_is_refused(monkeypatch):
    assert decode(DATA, record().key, "model") == record()
    with pytest.raises(ValueError, match="another model"):
        decode(DATA, record().key, "model 2")
    with pytest.raises(ValueError, match="other tokens"):
        decode(DATA, record(1).key, "model")
    with pytest.raises(ValueError, match="other tokens"):
        decode(DATA, record(0, "state").key, "model")
    monkeypatch.setattr(disk_format, "FORMAT_VERSION", 2)
    with pytest.raises(ValueError, match="format"):
        decode(DATA, record().key, "model")


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def exchange(path: Path) -> None:
    """The file of another block, under this one's name."""
    other = next(one for one in files(path.parent.parent) if one != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [spoil, exchange])
def test_a_bad_file_is_discarded_with_a_warning_and_never_served(opened, caplog, damage):
    first = opened()
    write(first, record(0), record(1), record(2))
    damage(first._path(record(1).key))
    reading = first.read([record(n).key for n in range(3)])
    assert reading.done.wait(10)
    assert reading.records == [record(0)]
    assert reading.damaged
    assert first._path(record(1).key).name in caplog.text
    assert first.discarded == 1
    assert not first._path(record(1).key).exists()
    assert not first.holds(record(1).key)
    write(first, record(1))
    assert read(first, record(0), record(1)) == [record(0), record(1)]


def test_files_of_another_model_in_the_folder_are_discarded(opened):
    first, second = opened("a"), opened("b")
    write(first, record())
    path = second._path(record().key)
    path.parent.mkdir()
    path.write_bytes(first._path(record().key).read_bytes())
    third = opened("b")
    assert third.holds(record().key)
    assert read(third, record()) == []
    assert third.discarded == 1


def test_the_budget_is_kept_and_the_least_recently_used_go_first(opened):
    cache = opened(budget=10 * file_size(20))
    for number in range(10, 20):
        write(cache, record(number))
    read(cache, record(10))
    write(cache, record(20))
    assert cache.nbytes == sum(path.stat().st_size for path in files(cache.folder)) <= cache.budget
    assert cache.holds(record(10).key)
    assert not cache.holds(record(11).key)
    assert cache.evictions > 0
    assert record(11).key in cache.lost


def test_the_budget_is_for_all_models_and_the_old_one_goes_first(opened):
    old = opened("old")
    write(old, *(record(n) for n in range(10, 14)))
    new = opened("new", budget=5 * file_size(10))
    for number in range(10, 14):
        write(new, record(number))
    assert all(new.holds(record(n).key) for n in range(10, 14))
    assert sum(path.stat().st_size for path in files(new.folder)) <= new.budget
    # The old one's server does not know yet, and that is a plain miss.
    assert old.holds(record(10).key)
    assert len(read(old, *(record(n) for n in range(10, 14)))) < 4
    assert old.discarded == 0


def test_a_block_goes_after_those_that_follow_it(opened):
    cache = opened(budget=4 * file_size(10))
    write(cache, *(record(n) for n in range(10, 14)))
    read(cache, *(record(n) for n in range(10, 14)))
    write(cache, record(20))
    left = [number for number in range(10, 14) if cache.holds(record(number).key)]
    assert left == list(range(10, 10 + len(left)))
    assert left


def test_a_smaller_budget_is_kept_from_the_start(opened):
    first = opened()
    write(first, *(record(n) for n in range(10, 20)))
    first.close()
    second = opened(budget=3 * file_size(10))
    assert sum(path.stat().st_size for path in files(second.folder)) <= second.budget


def test_what_never_fits_is_not_taken(opened):
    cache = opened(budget=SIZE // 2)
    assert not cache.wants(record().key, record().nbytes)
    assert files(cache.folder) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_is_one_warning(opened, monkeypatch, caplog, code):
    cache = opened()
    write(cache, record(0))

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", fail)
    for number in (1, 2, 3):
        if cache.wants(record(number).key, SIZE):
            cache.write(record(number))
    settle(cache)
    assert not cache.wants(record(4).key, SIZE)
    assert len([entry for entry in caplog.records if entry.levelno >= logging.WARNING]) == 1
    assert read(cache, record(0)) == [record(0)], "what is there is still read"
    assert len(files(cache.folder)) == 1, "nothing half-written stays"


def test_a_disk_with_room_again_is_written_to_again(opened, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = clock_of(monkeypatch, disk_cache)
    cache = opened()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for number in range(3):
        with monkeypatch.context() as full:
            full.setattr(Path, "replace", fail)
            write(cache, record(number))
        assert not cache.wants(record(number).key, SIZE)
        clock.ahead += disk_cache.RETRY_SECONDS
    write(cache, record(3))
    assert read(cache, record(3)) == [record(3)]
    assert [entry.levelname for entry in caplog.records] == ["WARNING", "INFO"]


def test_a_folder_that_cannot_be_made_is_one_warning(opened, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = opened(folder=tmp_path / "file" / "cache")
    assert not cache.wants(record().key, SIZE)
    assert read(cache, record()) == []
    assert len(caplog.records) == 1


def test_a_folder_that_vanishes_is_a_miss(opened, tmp_path, caplog):
    cache = opened()
    write(cache, record(0))
    cache.folder.rename(tmp_path / "elsewhere")
    assert read(cache, record(0)) == []
    assert not cache.holds(record(0).key)
    assert caplog.records == []
    cache.write(record(1))
    settle(cache)
    assert len(caplog.records) == 1
    assert not cache.wants(record(2).key, SIZE)
    assert not cache.folder.exists()


def test_a_file_that_cannot_be_read_is_a_miss(opened, caplog):
    cache = opened()
    write(cache, record(0))
    path = cache._path(record(0).key)
    path.unlink()
    path.mkdir()
    assert read(cache, record(0)) == []
    assert str(path) in caplog.text


class Slow:
    """Holds up the thread of a disk cache until it is let go."""

    def __init__(self, cache: DiskCache) -> None:
        self.let_go = threading.Event()
        self.begun = threading.Event()
        self.write = cache._write
        cache._write = self

    def __call__(self, *arguments) -> None:
        self.begun.set()
        assert self.let_go.wait(10)
        self.write(*arguments)


def test_what_does_not_fit_in_the_queue_is_dropped_and_nobody_waits(opened):
    cache = opened(queue_bytes=3 * record().nbytes)
    slow = Slow(cache)
    for number in range(8):
        if cache.wants(record(number).key, record(number).nbytes):
            cache.write(record(number))
    assert slow.begun.wait(10)
    assert cache.dropped == 5
    assert not cache.wants(record(9).key, record(9).nbytes, timeout=0.01)
    assert cache.holds(record(2).key), "what waits to be written can be had already"
    slow.let_go.set()
    settle(cache)
    assert len(files(cache.folder)) == 3
    assert cache.wants(record(9).key, record(9).nbytes)


def test_reads_go_before_writes_and_get_what_is_not_written_yet(opened):
    cache = opened()
    write(cache, record(0))
    slow = Slow(cache)
    for number in (1, 2, 3):
        cache.write(record(number))
    assert slow.begun.wait(10)
    reading = cache.read([record(0).key, record(3).key])
    order = []
    plain = cache._serve
    cache._serve = lambda one: (order.append(len(files(cache.folder))), plain(one))
    slow.let_go.set()
    assert reading.done.wait(10)
    assert reading.records == [record(0), record(3)]
    assert order == [2], "one write was under way, the others had to wait"


def test_nothing_is_written_twice(opened):
    cache = opened()
    write(cache, record())
    assert not cache.wants(record().key, SIZE)
    cache.close()
    assert not opened().wants(record().key, SIZE)


def test_what_waits_is_counted_once(opened):
    cache = opened()
    slow = Slow(cache)
    cache.write(record(0))
    assert slow.begun.wait(10)
    for _ in range(3):
        cache.write(record(1))
    assert cache.queued_bytes == 2 * record().nbytes
    slow.let_go.set()
    settle(cache)
    assert cache.queued_bytes == 0


def test_a_disk_that_does_not_answer_is_as_if_off_until_it_does(opened, monkeypatch):
    cache = opened()
    write(cache, record(0))
    clock = clock_of(monkeypatch, disk_cache)
    monkeypatch.setattr(disk_cache, "PATIENCE", 60)
    slow = Slow(cache)
    cache.write(record(1))
    assert slow.begun.wait(10)
    reading = cache.read([record(0).key])
    assert not cache.late(reading)
    clock.ahead += 70
    assert cache.late(reading)
    assert not cache.holds(record(0).key)
    assert not cache.wants(record(2).key, SIZE)
    slow.let_go.set()
    assert reading.done.wait(10)
    assert not cache.late(reading)
    settle(cache)
    # Nor is one that has nothing to do.
    clock.ahead += 70
    assert cache.holds(record(0).key)
    assert cache.wants(record(2).key, SIZE)


def test_a_disk_that_is_slow_with_every_block_is_not_waited_for(opened, monkeypatch):
    """No single file takes long, but all together do."""
    cache = opened()
    write(cache, *(record(number) for number in range(20)))
    clock = clock_of(monkeypatch, disk_cache)
    monkeypatch.setattr(disk_cache, "PATIENCE", 60)
    load, steps, let_go = cache._load, iter(range(20)), threading.Event()

    def slow(*arguments):
        clock.ahead += 20
        assert next(steps) < 4 or let_go.wait(10)
        return load(*arguments)

    monkeypatch.setattr(cache, "_load", slow)
    reading = cache.read([record(number).key for number in range(20)])
    until(lambda: cache.late(reading))
    assert not cache.stuck
    let_go.set()


def test_what_was_read_is_not_held_on_to(opened):
    cache = opened()
    write(cache, record())
    reading = cache.read([record().key])
    assert reading.done.wait(10)
    gone = weakref.ref(reading.records[0].payload[0])
    del reading
    until(lambda: gone() is None)


def test_a_queue_that_is_forgotten_is_not_written(opened):
    cache = opened()
    slow = Slow(cache)
    for number in range(4):
        cache.write(record(number))
    assert slow.begun.wait(10)
    cache.forget_queue()
    slow.let_go.set()
    settle(cache)
    assert len(files(cache.folder)) <= 1
    assert cache._queued == 0


def test_deleted_blocks_are_gone(opened):
    cache = opened()
    write(cache, record(0), record(1))
    slow = Slow(cache)
    cache.write(record(2))
    assert slow.begun.wait(10)
    cache.delete([record(0).key, record(2).key])
    assert not cache.holds(record(0).key)
    slow.let_go.set()
    settle(cache)
    assert [cache.holds(record(n).key) for n in range(3)] == [False, True, False]
    assert len(files(cache.folder)) == 1


def test_closing_writes_what_waits(opened):
    cache = opened()
    for number in range(20):
        cache.write(record(number))
    cache.close()
    assert len(files(cache.folder)) == 20
    assert not cache.wants(record(30).key, SIZE)
    assert read(cache, record(0)) == []


def test_closing_takes_no_longer_than_it_may(opened):
    cache = opened()
    slow = Slow(cache)
    for number in range(3):
        cache.write(record(number))
    assert slow.begun.wait(10)
    closing = threading.Thread(target=cache.close, args=(0.01,))
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    slow.let_go.set()
    cache._thread.join(5)
    assert len(files(cache.folder)) == 1


def test_two_servers_share_a_folder(opened):
    budget = 8 * file_size(10)
    caches = [opened(budget=budget), opened(budget=budget)]
    served = []

    def work(cache: DiskCache) -> None:
        for round_ in range(60):
            numbers = [10 + (round_ + step) % 20 for step in range(3)]
            for number in numbers:
                if cache.wants(record(number).key, SIZE):
                    cache.write(record(number))
            served.extend(
                (one, number) for one, number in zip(read(cache, *map(record, numbers)), numbers, strict=False)
            )

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for cache in caches:
        settle(cache)
    assert served
    assert all(one == record(number) for one, number in served)
    assert sum(cache.discarded for cache in caches) == 0
    assert not any(cache._off for cache in caches)
    assert not list(caches[0].folder.rglob("*.tmp"))


def test_what_dead_servers_left_half_written_is_cleared_away(opened):
    cache = opened()
    write(cache, record())
    old, new = (cache._path(record().key).with_name(f".{'0' * 32}.{server * 16}.tmp") for server in "12")
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (0, 0))
    opened()
    assert not old.exists()
    assert new.exists()


def test_the_thread_survives_anything(opened, caplog, monkeypatch):
    cache = opened()
    monkeypatch.setattr(cache, "_load", lambda *_: 1 / 0)
    reading = cache.read([record().key])
    assert reading.done.wait(10)
    assert reading.records == []
    monkeypatch.undo()
    write(cache, record(1))
    assert "ZeroDivisionError" in caplog.text
    assert cache.holds(record(1).key)


def test_the_identity_is_of_everything_that_keys_and_values_depend_on(tmp_path, monkeypatch):
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text("{}")
    found = [identity_of(tmp_path), identity_of(tmp_path, "float16"), identity_of(tmp_path, "float16", "8 bits")]
    (tmp_path / "README.md").write_text("other")
    assert identity_of(tmp_path) == found[0]
    (tmp_path / "tokenizer.json").write_text("[]")
    found.append(identity_of(tmp_path))
    os.utime(tmp_path / "model.safetensors", (time.time() + 9, time.time() + 9))
    found.append(identity_of(tmp_path))
    (tmp_path / "model.safetensors").write_text("{    }")
    found.append(identity_of(tmp_path))
    monkeypatch.setattr(disk_cache, "version", lambda package: "9")
    found.append(identity_of(tmp_path))
    assert len(set(found)) == len(found)
