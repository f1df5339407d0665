"""The outbox: what is in it survives, whatever happens to the process, the disk and the file."""

import logging
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jackfield.errors import ConfigurationError
from jackfield.hooks import Event
from jackfield_notify.database import Database, StorageError
from jackfield_notify.devices import Device, Devices
from jackfield_notify.notification import Notification
from jackfield_notify.outbox import MOST_UNWRITTEN, Message, Outbox

NOW = 1_800_000_000.0


def message(title: str = "It failed.", target: str = "phone", due: float = NOW, address: str = "") -> Message:
    told = Notification.of(Event("failed", "error", title, model="starter", request_id="req_1", data={"status": 500}))
    return Message(target, told, created=NOW, due=due, expires=NOW + 3600, address=address)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "notify.db")) as database:
        yield database


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


def lease(outbox: Outbox, now: float = NOW, target: str = "phone", limit: int = 10) -> list[Message]:
    return outbox.lease(target, now, 60, limit)


def test_what_was_put_is_what_is_leased(outbox: Outbox) -> None:
    put = message()
    outbox.put([put])
    [got] = lease(outbox)
    assert (got.id, got.notification, got.target) == (put.id, put.notification, put.target)
    assert (got.state, got.attempts) == ("in_flight", 1)


def test_nobody_else_gets_a_leased_message_until_the_lease_ends(outbox: Outbox) -> None:
    outbox.put([message()])
    [first] = lease(outbox)
    assert lease(outbox, NOW + 59) == []
    [again] = lease(outbox, NOW + 60)
    assert (again.id, again.attempts) == (first.id, 2)


def test_only_what_is_due_for_the_target_is_leased_the_oldest_first(outbox: Outbox) -> None:
    outbox.put([message("late", due=NOW - 1), message("early", due=NOW - 2), message("later", due=NOW + 1)])
    outbox.put([message("elsewhere", "chat")])
    assert [one.notification.title for one in lease(outbox)] == ["early", "late"]
    assert outbox.next_due("chat") == NOW
    assert outbox.next_due("nobody") is None


def test_messages_outlive_the_process_and_what_was_in_flight_is_queued_again(tmp_path: Path) -> None:
    file = tmp_path / "notify.db"
    with closing(Database(file)) as database:
        Outbox(database).put([message("one"), message("two")])
        [leased] = lease(Outbox(database), limit=1)
    with closing(Database(file)) as database:
        outbox = Outbox(database)
        assert outbox.recover() == 1
        assert leased.id in {one.id for one in lease(outbox)}
        assert outbox.counts()["in_flight"] == 2


def test_what_has_been_delivered_is_not_delivered_again(outbox: Outbox) -> None:
    outbox.put([message()])
    [got] = lease(outbox)
    outbox.delivered(got.id, NOW)
    assert lease(outbox, NOW + 10_000) == []
    assert outbox.counts() == {"queued": 0, "in_flight": 0, "delivered": 1, "dead": 0}


def test_dead_letters_are_kept_shown_and_sent_again_when_asked(outbox: Outbox) -> None:
    outbox.put([message("one"), message("two")])
    for got in lease(outbox):
        outbox.dead(got.id, NOW, "No such place.")
    newest, oldest = outbox.messages("dead")
    assert (newest.error, newest.notification.title, oldest.notification.title) == ("No such place.", "two", "one")
    assert outbox.revive([oldest.id, "unknown"], NOW + 5000, 60) == [oldest.id]
    [again] = lease(outbox, NOW + 5000)
    assert (again.id, again.expires) == (oldest.id, NOW + 5060)
    assert outbox.revive(None, NOW + 5000, 60) == [newest.id]


def test_the_past_is_kept_within_bounds(database: Database) -> None:
    outbox = Outbox(database, keep_delivered=3, keep_dead=2)
    outbox.put([message(str(number)) for number in range(10)])
    for number, got in enumerate(lease(outbox)):
        (outbox.delivered if number % 2 else lambda one, at: outbox.dead(one, at, "No."))(got.id, NOW + number)
    outbox.put([message("new")])
    assert outbox.counts() == {"queued": 1, "in_flight": 0, "delivered": 3, "dead": 2}
    assert [one.notification.title for one in outbox.messages("delivered")] == ["9", "7", "5"]


def test_when_too_many_wait_new_ones_are_dead_letters_and_not_lost(database: Database) -> None:
    outbox = Outbox(database, most_queued=2)
    outbox.put([message("one"), message("two"), message("three")])
    assert outbox.counts()["queued"] == 2
    [dead] = outbox.messages("dead")
    assert (dead.notification.title, dead.error) == ("three", "The outbox was full.")


def test_messages_for_targets_and_devices_that_are_gone_become_dead_letters(outbox: Outbox) -> None:
    outbox.put([message("one", "removed"), message("two", "app", address="aa"), message("three", "app", address="bb")])
    assert outbox.bury_orphans(["app"], NOW) == 1
    assert outbox.bury_address("app", "aa", NOW, "The device was removed.") == 1
    assert {one.notification.title: one.error for one in outbox.messages("dead")} == {
        "one": "The target is not in the settings.",
        "two": "The device was removed.",
    }
    assert [one.notification.title for one in lease(outbox, target="app")] == ["three"]


def test_what_is_given_up_while_it_is_under_way_is_not_queued_again(outbox: Outbox) -> None:
    outbox.put([message("one", "app", address="aa"), message("two", "app", address="aa")])
    failed, interrupted = lease(outbox, target="app")
    outbox.bury_address("app", "aa", NOW, "The device was removed.")
    outbox.retry(failed.id, NOW, "busy")
    outbox.give_back(interrupted)
    assert outbox.counts() == {"queued": 0, "in_flight": 0, "delivered": 0, "dead": 2}


# --- When the file cannot be written ---------------------------------------------------------------------------------


def test_a_full_disk_holds_messages_in_memory_until_there_is_room(
    database: Database, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.put([message("before")])
    with database.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    assert database._connection is not None
    database._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says that the disk is full
    outbox.put([message(title="x" * 400) for _ in range(50)])
    assert "50 messages" in caplog.text
    assert "disk is full" in caplog.text
    assert outbox.counts()["queued"] == 1
    database._connection.execute("PRAGMA max_page_count = 1000000")
    assert len(lease(outbox, limit=100)) == 51
    assert outbox.lost == 0


def test_another_process_that_holds_the_file_costs_no_message(database: Database, outbox: Outbox) -> None:
    assert database._connection is not None
    database._connection.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(database.file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        outbox.put([message()])
        with pytest.raises(StorageError, match="locked"):
            lease(outbox)
        other.execute("ROLLBACK")
    assert len(lease(outbox)) == 1


def test_a_disk_that_stays_full_costs_the_oldest_messages_and_says_how_many(database: Database, outbox: Outbox) -> None:
    assert database._connection is not None
    database._connection.execute("PRAGMA query_only = 1")
    outbox.put([message(str(number)) for number in range(MOST_UNWRITTEN + 5)])
    assert outbox.lost == 5
    database._connection.execute("PRAGMA query_only = 0")
    outbox.put([])
    assert [one.notification.title for one in lease(outbox, limit=1)] == ["5"]


def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "notify.db"
    file.write_bytes(b"this is no database, it is a text" * 100)
    with closing(Database(file)) as database:
        outbox = Outbox(database)
        outbox.put([message()])
        assert len(lease(outbox)) == 1
    [aside] = tmp_path.glob("notify.db.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(aside) in record.getMessage()


def test_damage_while_the_server_runs_costs_the_old_messages_but_no_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "notify.db"
    with closing(Database(file)) as database:
        outbox = Outbox(database)
        outbox.put([message("x" * 400) for _ in range(300)])
        with database.transaction() as connection:
            connection.execute("SELECT 1")
        assert database._connection is not None
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database._connection.execute("PRAGMA cache_size = 1")
        content = bytearray(file.read_bytes())
        content[4096:] = bytes(len(content) - 4096)
        file.write_bytes(content)
        outbox.put([message("new")])
        outbox.put([message("newer")])
        assert [one.notification.title for one in lease(outbox)] == ["new", "newer"]
    assert list(tmp_path.glob("notify.db.damaged-*"))
    assert "was damaged" in caplog.text


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notify.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="newer version"):
        Database(file)
    assert list(tmp_path.glob("*damaged*")) == []


def test_a_folder_that_cannot_be_used_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "notify.db").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be opened") as refusal:
        Database(tmp_path / "notify.db")
    assert any("JACKFIELD_DATA_DIR" in hint for hint in refusal.value.suggestions)


def test_nobody_else_can_read_the_files(tmp_path: Path, outbox: Outbox) -> None:
    outbox.put([message()])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"notify.db", "notify.db-wal"} <= set(modes)


# --- Devices ---------------------------------------------------------------------------------------------------------


def test_a_device_that_registers_again_is_still_one(database: Database) -> None:
    devices = Devices(database)
    devices.register(Device("app", "aa" * 32, "Old name", NOW))
    devices.register(Device("app", "aa" * 32, "New name", NOW + 1))
    assert [(one.name, one.registered) for one in devices.all("app")] == [("New name", NOW + 1)]
    assert devices.all("other") == []


def test_a_device_that_has_registered_since_is_kept(database: Database) -> None:
    devices = Devices(database)
    devices.register(Device("app", "aa" * 32, "", NOW))
    assert not devices.remove("app", "aa" * 32, unless_after=NOW - 1)
    assert devices.remove("app", "aa" * 32, unless_after=NOW + 1)
    assert devices.all() == []
