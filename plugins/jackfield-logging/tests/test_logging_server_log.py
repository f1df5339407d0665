"""The server's own messages become lines, and its loggers are given back as they were."""

import json
import logging
from pathlib import Path

import pytest
import structlog

from logged import line, lines, started

LOGGERS = [logging.getLogger(name) for name in ("jackfield", "uvicorn.error")]


@pytest.fixture(autouse=True)
def all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    for logger in LOGGERS:
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        monkeypatch.setattr(logger, "_cache", {})


@pytest.mark.parametrize("name", ["jackfield", "jackfield.engine.worker", "uvicorn.error"])
def test_messages_of_the_server_are_lines(tmp_path: Path, name: str) -> None:
    file = tmp_path / "log"
    with started(file=file, server_log=True):
        logging.getLogger(name).warning("Step %d took %s", 3, "long")
    told = line(file)
    assert (told["event"], told["level"], told["logger"]) == ("server_log", "warning", name)
    assert told["message"] == "Step 3 took long"


def test_a_message_about_a_request_can_name_it(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, server_log=True):
        logging.getLogger("jackfield.choice").error("Cached", extra={"request_id": "req-1"})
    assert line(file)["request_id"] == "req-1"


def test_levels_of_others_become_the_ones_we_have(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, server_log=True, level="debug"):
        for level in (1, 25, 99):
            logging.getLogger("jackfield.x").log(level, "Hm")
    assert [told["level"] for told in lines(file)] == ["info", "critical"]


def test_an_error_comes_with_its_traceback_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, server_log=True):
        try:
            raise ValueError("wrong: ada@example.com")
        except ValueError:
            logging.getLogger("jackfield.engine").exception("It failed")
    told = line(file)
    assert told["message"] == "It failed"
    assert told["traceback"].endswith("ValueError: wrong: [redacted:email]\n") and __file__ in told["traceback"]


def test_events_are_not_told_twice(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, server_log=True):
        logging.getLogger("jackfield.events").info("slow: The first token took 9 seconds.")
        try:
            raise ValueError
        except ValueError:
            logging.getLogger("jackfield.events").exception("A listener failed")
    assert line(file)["message"] == "A listener failed"


def test_others_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, server_log=True):
        logging.getLogger("somebody.else").error("Not ours")
        logging.getLogger("jackfield_logging").error("Would come back for ever")
    assert lines(file) == []


def test_with_a_file_messages_still_reach_the_standard_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with started(file=tmp_path / "log", server_log=True):
        logging.getLogger("jackfield.x").error("Here, too")
    assert [one.getMessage() for one in caplog.records] == ["Here, too"]


def test_on_the_standard_error_messages_are_not_told_twice(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with started(server_log=True):
        logging.getLogger("jackfield.x").error("Once")
    assert json.loads(capfd.readouterr().err)["message"] == "Once"
    assert caplog.records == []


def test_nothing_is_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = [(logger.handlers[:], logger.propagate) for logger in LOGGERS]
    configured = structlog.get_config() | {}
    with started(server_log=True):
        assert [logger.propagate for logger in LOGGERS] == [False, False]
    assert [(logger.handlers, logger.propagate) for logger in LOGGERS] == before
    assert [logger.propagate for logger in LOGGERS] == [True, True]
    assert structlog.get_config() == configured and not structlog.is_configured()


def test_messages_are_left_alone_where_that_is_set(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with started(file=file, server_log=False):
        logging.getLogger("jackfield.x").error("Elsewhere")
    assert lines(file) == []


def test_a_message_that_cannot_be_put_together_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "log"
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(LOGGERS[0], "propagate", False)
    with started(file=file, server_log=True):
        logging.getLogger("jackfield.x").error("%d", "no number")
        logging.getLogger("jackfield.x").error("next")
    assert line(file)["message"] == "next"
