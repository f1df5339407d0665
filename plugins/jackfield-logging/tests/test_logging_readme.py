"""The README says what there is."""

import re
import tomllib
from pathlib import Path

from jackfield_logging import Settings

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_its_example_is_valid() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    settings = Settings.model_validate(tomllib.loads(example)["plugins"]["logging"])
    assert settings.log_prompts and list(settings.redact) == ["employee", "door_code"]


def test_its_table_has_every_setting_with_its_default() -> None:
    [section] = re.findall(r"^## Settings\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    table = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`|the standard error) \|", section, re.MULTILINE))
    told = tomllib.loads("\n".join(f"{name} = {default}" for name, default in table.items() if default))
    assert table.keys() == Settings.model_fields.keys()
    assert Settings.model_validate(told) == Settings()
