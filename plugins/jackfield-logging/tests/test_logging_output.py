"""Files are rotated, private, and written by one thread; when they cannot be, the server goes on and says so."""

import json
import logging
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jackfield.hooks import Event, LogRecord
from jackfield_logging import Plugin
from jackfield_logging.output import LogFile
from logged import REQUEST, line, lines, record, started


def told(plugin: Plugin, number: int) -> None:
    plugin.log_record(record("backend", number=number))


def tell_many(plugin: Plugin, first: int) -> None:
    for number in range(first, first + 100):
        told(plugin, number)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_full_files_are_kept_as_backups_and_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, max_bytes=2000, backups=50) as plugin:
        for number in range(100):
            told(plugin, number)
    files = [tmp_path / f"log.{n}" for n in range(50, 0, -1) if (tmp_path / f"log.{n}").exists()] + [file]
    assert len(files) > 5 and max(one.stat().st_size for one in files) <= 2000
    assert [told["number"] for one in files for told in lines(one)] == list(range(100))


def test_old_backups_go(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, max_bytes=1000, backups=2) as plugin:
        for number in range(100):
            told(plugin, number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert lines(file)[-1]["number"] == 99


def test_without_a_size_nothing_is_rotated(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, max_bytes=0) as plugin:
        for number in range(100):
            told(plugin, number)
    assert len(lines(file)) == 100 and list(tmp_path.iterdir()) == [file]


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file) as plugin:
        threads = [threading.Thread(target=tell_many, args=(plugin, first)) for first in range(0, 800, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(told["number"] for told in lines(file)) == list(range(800))


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for number in range(2):
        with started(file=file) as plugin:
            told(plugin, number)
    assert [told["number"] for told in lines(file)] == [0, 1]


def test_only_its_owner_can_read_a_log_and_its_backups(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "folder" / "log"
    before = os.umask(0)
    try:
        with started(file=file, max_bytes=500, backups=1) as plugin:
            for number in range(10):
                told(plugin, number)
    finally:
        os.umask(before)
    assert mode(file) == mode(file.with_name("log.1")) == 0o600


def test_a_log_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch(0o644)
    with started(file=file):
        pass
    assert mode(file) == 0o600


@pytest.mark.parametrize("name", ["", "file/log", "nul\0"])
def test_a_file_that_cannot_be_opened_is_told_and_lines_go_to_the_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "file").touch()
    with started(file=str(tmp_path / name), format="json") as plugin:
        told(plugin, 7)
    problem, line = map(json.loads, capfd.readouterr().err.splitlines())
    assert (problem["event"], problem["level"], line["number"]) == ("log_file_failed", "error", 7)
    assert str(tmp_path) in problem["message"] and "[plugins.logging]" in problem["suggestions"][0]


def test_a_terminal_gets_colours_of_ours_alone() -> None:
    reader, terminal = os.openpty()
    with started(file=os.ttyname(terminal)) as plugin:
        plugin.log_record(LogRecord("backend", REQUEST, {"\x1b[2J": "\x1b[2J"}))
        plugin.on_event(Event("\x1b[2J", "info", "\x1b[2J"))
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    os.close(terminal)
    assert "backend_chosen" in shown and "\x1b[1m" in shown and "\x1b[2J" not in shown
    assert shown.count("\\x1b[2J") >= 4


def test_lines_go_to_the_standard_error_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    with started() as plugin:
        told(plugin, 7)
    assert json.loads(capfd.readouterr().err)["number"] == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with started(file="/dev/full") as plugin:
        for number in range(10):
            told(plugin, number)
    [complaint] = caplog.records
    assert complaint.levelno == logging.ERROR and "No space left on device" in complaint.getMessage()
    assert not complaint.name.startswith("jackfield.")  # or it would come back here by way of the server's log


def test_a_disk_with_room_again_is_told_and_no_line_is_torn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LogFile(tmp_path / "log", max_bytes=0, backups=1)
    with limited_to(8):
        for line in ("one", "three", "lost"):
            log.write(line)
    log.write("four")
    log.close()
    assert (tmp_path / "log").read_text() == "one\nthre\nfour\n"
    lost, again = [one.getMessage() for one in caplog.records]
    assert "cannot be written: [Errno 27] File too large" in lost
    assert again.endswith("can be written again; 2 lines were lost.")


@contextmanager
def limited_to(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_that_cannot_be_rotated_grows_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "log"
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "taken").touch()
    with started(file=file, max_bytes=300, backups=1) as plugin:
        for number in range(10):
            told(plugin, number)
    assert [told["number"] for told in lines(file)] == list(range(10))
    [complaint] = caplog.records
    assert "cannot be rotated" in complaint.getMessage()


HANGS = """
import os
from logged import started, record
from jackfield_logging import journal

journal.CLOSING_SECONDS = 0.1
reader, writer = os.pipe()
with started(file=f"/dev/fd/{writer}") as plugin:
    for number in range(12_000):  # more than the pipe and the queue hold
        plugin.log_record(record("backend", number=number))
"""


def test_a_pipe_that_nobody_reads_holds_up_neither_hooks_nor_the_end() -> None:
    subprocess.run([sys.executable, "-c", HANGS], cwd=Path(__file__).parent, check=True, timeout=60)


def test_lines_beyond_what_can_wait_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jackfield_logging.journal.CAPACITY", 5)
    reader, writer = os.pipe()
    received: list[bytes] = []
    with started(file=f"/dev/fd/{writer}") as plugin, os.fdopen(reader, "rb") as pipe:
        os.close(writer)
        for number in range(5000):
            told(plugin, number)
        thread = threading.Thread(target=lambda: received.append(pipe.read()))
        thread.start()
        plugin.shutdown()
        thread.join()
    written = [json.loads(line) for line in received[0].splitlines()]
    lost = [line["lines"] for line in written if line["event"] == "lines_lost"]
    assert lost and sum(lost) + len(written) - len(lost) == 5000


def test_a_line_that_cannot_be_written_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "log"

    def fails(seconds: float) -> str:
        if seconds == REQUEST.received:
            raise RuntimeError
        return "now"

    monkeypatch.setattr("jackfield_logging.journal._timestamp", fails)
    with started(file=file) as plugin:
        plugin.on_event(Event("odd", "info", "Odd.", time=REQUEST.received))
        told(plugin, 1)
    assert line(file)["number"] == 1
    assert "could not be written" in caplog.text
