"""What a person, or a log, sees of a long job."""

import io
import sys

import pytest

from jackfield.cli import progress as shown
from jackfield.cli.progress import RichProgress
from jackfield.models.progress import SILENT


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with RichProgress().task("Downloading something") as task:
        task.expect(2_000_000)
        task.advance(1_000_000)
    text = terminal.getvalue()
    assert "Downloading something" in text
    assert "1.0/2.0 MB" in text
    assert text.endswith("\x1b[2K")


def test_a_log_gets_a_line_at_the_start_and_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RichProgress().task("Downloading", 4_000_000) as task:
        task.advance(1_000_000)
        monkeypatch.setattr(shown, "LINE_EVERY_S", -1.0)
        task.advance(1_000_000)
    assert capsys.readouterr().err == "Downloading ...\n"
    with RichProgress().task("Downloading", 4_000_000) as task:
        task.advance(2_000_000)
    assert capsys.readouterr().err == "Downloading ...\nDownloading: 2 of 4 MB\n"


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with SILENT.task("Nothing", 1) as task:
        task.expect(2)
        task.advance(2)
    assert capsys.readouterr() == ("", "")
