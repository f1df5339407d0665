"""docs/security.md: every promise names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISES = (ROOT / "docs" / "security.md").read_text().split("## Promises")[1]


def test_every_promise_has_tests_that_there_are() -> None:
    rows = re.findall(r"^\| (.+) \| (`.+`) \|$", PROMISES, re.M)
    assert len(rows) >= 10
    there = {file.name for file in (ROOT / "tests").rglob("test_*.py")}
    for promise, tests in rows:
        named = re.findall(r"`(test_\w+\.py)`", tests)
        assert named, promise
        assert set(named) <= there, promise
