"""Settings, and what is said of wrong ones."""

from typing import Any

import pytest
from pydantic import ValidationError

from jackfield_compression import Settings


def test_a_single_strategy_needs_no_list() -> None:
    assert Settings(strategy="window").strategy == ("window",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"strategy": "squash"}, "there is no 'squash'; take from: extractive, window, summary"),
        ({"strategy": []}, "name one or more of: extractive, window, summary"),
        ({"strategy": 3}, "name one or more of"),
        ({"strategy": ["window", "window"]}, "name each strategy once"),
        ({"strategy": ["summary"], "remember": 0}, "set remember to 1 or more"),
        ({"target": 1}, "less than or equal to 0.9"),
        ({"head_lines": 0}, "greater than or equal to 1"),
        ({"summary_tokens": 5}, "greater than or equal to 16"),
        ({"strategie": ["window"]}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_wrong_settings_are_told(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match="(?s)" + told.replace("(", r"\(")):
        Settings(**wrong)
