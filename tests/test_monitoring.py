"""`jackfield monitoring export`: what it writes speaks of metrics that there are, and says what it shows."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from jackfield.cli.main import main
from jackfield.monitoring.dashboard import dashboard
from jackfield.monitoring.scrape import alert_rules

GUIDE = (Path(__file__).parent.parent / "docs" / "monitoring.md").read_text()
NAME = re.compile(r"\b(?:jackfield|process)_\w+")
SEVERITIES = {"critical", "warning", "info"}


def documented() -> set[str]:
    """All series that docs/monitoring.md lists, which tests hold to what the server exposes."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|", GUIDE, re.M)
    found = {name for name, _ in rows}
    return found | {
        f"{name}_{part}" for name, kind in rows if kind == "histogram" for part in ("bucket", "sum", "count")
    }


def export(folder: Path, *arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["monitoring", "export", str(folder), *arguments])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(dashboard())["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(alert_rules())["groups"]
    return list(group["rules"])


def test_every_panel_shows_what_there_is(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        for target in panel["targets"]:
            names = set(NAME.findall(target["expr"]))
            assert names, panel["title"]
            assert names <= documented(), panel["title"]


def test_every_panel_says_what_it_shows(panels: list[dict[str, Any]]) -> None:
    titles = [panel["title"] for panel in panels]
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["legendFormat"] for target in panel["targets"])
    assert len(titles) - len(set(titles)) <= 1  # "Waiting" is a number and a latency


def test_panels_do_not_lie_on_each_other(panels: list[dict[str, Any]]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(dashboard())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in json.loads(dashboard())["panels"]]
    assert len(numbers) == len(set(numbers))


def test_alerts_speak_of_what_there_is_and_say_what_to_do() -> None:
    for rule in rules():
        names = set(NAME.findall(rule["expr"]))
        assert names <= documented(), rule["alert"]
        assert names or "up{" in rule["expr"]
        assert rule["labels"]["severity"] in SEVERITIES
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["description"]) > 40


def test_all_alerts_are_on_the_page() -> None:
    listed = re.findall(r"^\| `(Jackfield\w+)` \|", GUIDE, re.M)
    assert listed == [rule["alert"] for rule in rules()]


def test_three_files_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    told = json.loads(export(folder, "--json"))
    names = ["prometheus.yml", "jackfield-alerts.yml", "jackfield-dashboard.json"]
    assert told == {"files": [str(folder / name) for name in names]}
    assert (folder / names[1]).read_text() == alert_rules()
    assert json.loads((folder / names[2]).read_text())["title"] == "Jackfield"
    written = yaml.safe_load((folder / names[0]).read_text())
    (job,) = written["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8080"]}]
    assert "authorization" not in job
    assert written["rule_files"] == ["jackfield-alerts.yml"]


def test_several_servers_with_keys(tmp_path: Path) -> None:
    arguments = ("--target", "a:1", "--target", "[::1]:2", "--scheme", "https", "--interval", "5s", "--key-file", "/k")
    export(tmp_path, *arguments)
    written = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    (job,) = written["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["a:1", "[::1]:2"]}]
    assert (job["scheme"], job["authorization"]) == ("https", {"credentials_file": "/k"})
    assert written["global"]["scrape_interval"] == "5s"


def test_nothing_is_written_over_unless_that_is_wanted(tmp_path: Path) -> None:
    export(tmp_path)
    (tmp_path / "prometheus.yml").write_text("mine")
    result = CliRunner().invoke(main, ["monitoring", "export", str(tmp_path)])
    assert result.exit_code == 1
    assert "written over" in result.output
    assert (tmp_path / "prometheus.yml").read_text() == "mine"
    export(tmp_path, "--force")
    assert (tmp_path / "prometheus.yml").read_text() != "mine"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in export(tmp_path / "file" / "folder", status=1)


def test_templates_are_in_the_package() -> None:
    assert (files("jackfield") / "templates/monitoring/jackfield-alerts.yml").is_file()
