"""What is wrong in ``[plugins.logging]`` is told before the server starts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jackfield_logging import Settings


def test_prompts_stay_private_by_default() -> None:
    assert Settings().log_prompts is False


def test_sizes_can_be_written_with_a_unit() -> None:
    assert Settings.model_validate({"max_bytes": "2MB"}).max_bytes == 2_000_000


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert Settings.model_validate({"file": "~/log"}).file == Path("/home/ada/log")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"log_prompt": True}, "Extra inputs are not permitted"),
        ({"level": "trace"}, "'debug', 'info', 'warning' or 'error'"),
        ({"format": "xml"}, "'auto', 'json' or 'console'"),
        ({"backups": 0}, "greater than or equal to 1"),
        ({"max_bytes": -1}, "could not parse value and unit"),
        ({"max_bytes": "50 apples"}, "could not interpret byte unit: apples"),
        ({"redact": {"staff": "(EMP"}}, "'(EMP' is no regular expression in RE2's syntax"),
        ({"redact": {"staff": "(?<=x)y"}}, "neither lookaround nor backreferences"),
        ({"redact": {"staff": r"(a)\1"}}, "neither lookaround nor backreferences"),
        ({"redact": {"staff": "x*"}}, "matches the empty text"),
        ({"redact": {"two words": "x"}}, "String should match pattern"),
    ],
)
def test_mistakes_are_told(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(table)
    assert told in str(caught.value)


def test_a_wrong_rule_says_which_it_is() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"redact": {"staff": "(EMP"}})
    assert caught.value.errors()[0]["loc"] == ("redact", "staff")
