"""Beside Debian's Prometheus: promtool accepts what there is, alerts fire when they should, a server is scraped."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from openai import OpenAI

from jackfield.monitoring.dashboard import dashboard
from jackfield.monitoring.scrape import alert_rules, scrape_configuration
from serving import Server, serve

WHERE = 'instance="a:1"'
MODEL = f'{WHERE}, model_name="m"'
PATIENCE = 60

CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "JackfieldDown": ({f'up{{job="jackfield", {WHERE}}}': "0x60"}, {f'up{{job="jackfield", {WHERE}}}': "1x60"}),
    "JackfieldNotReady": (
        {f"jackfield_engine_ready{{{MODEL}}}": "0x60"},
        {f"jackfield_engine_ready{{{MODEL}}}": "1x60"},
    ),
    "JackfieldEngineRestarts": (
        {f"jackfield_engine_restarts_total{{{MODEL}}}": "0+1x60"},
        {f"jackfield_engine_restarts_total{{{MODEL}}}": "0x20 1x40"},
    ),
    "JackfieldErrors": (
        {
            f'jackfield_requests_total{{{MODEL}, endpoint="/c", status="200"}}': "0+60x60",
            f'jackfield_requests_total{{{MODEL}, endpoint="/c", status="503"}}': "0+10x60",
        },
        {
            f'jackfield_requests_total{{{MODEL}, endpoint="/c", status="200"}}': "0+60x60",
            f'jackfield_requests_total{{{MODEL}, endpoint="/c", status="400"}}': "0+60x60",
            f'jackfield_requests_total{{{MODEL}, endpoint="/c", status="500"}}': "0+1x60",
        },
    ),
    "JackfieldRefusing": (
        {f'jackfield_requests_total{{{MODEL}, endpoint="/c", status="429"}}': "0+3x60"},
        {f'jackfield_requests_total{{{MODEL}, endpoint="/c", status="429"}}': "0x30 1x30"},
    ),
    "JackfieldQueueLong": (
        {f"jackfield_num_requests_waiting{{{MODEL}}}": "20x60"},
        {f"jackfield_num_requests_waiting{{{MODEL}}}": "2x60"},
    ),
    "JackfieldSlowFirstToken": (
        {
            f'jackfield_time_to_first_token_seconds_bucket{{{MODEL}, endpoint="/c", le="{le}"}}': f"0+{step}x60"
            for le, step in (("10", 1), ("100", 10), ("+Inf", 10))
        },
        {
            f'jackfield_time_to_first_token_seconds_bucket{{{MODEL}, endpoint="/c", le="{le}"}}': "0+10x60"
            for le in ("10", "100", "+Inf")
        },
    ),
    "JackfieldMemoryShort": (
        {f'jackfield_memory_pressure{{{MODEL}, level="refusing"}}': "1x60"},
        {
            f'jackfield_memory_pressure{{{MODEL}, level="refusing"}}': "0x60",
            f'jackfield_memory_pressure{{{MODEL}, level="evicting"}}': "1x60",
        },
    ),
    "JackfieldCacheThrashing": (
        {
            f'jackfield_prefix_cache_evicted_blocks_total{{{MODEL}, tier="memory"}}': "0+120x60",
            f'jackfield_prefix_cache_hits_total{{{MODEL}, tier="memory"}}': "0+10x60",
            f"jackfield_prefix_cache_queries_total{{{MODEL}}}": "0+1000x60",
        },
        {
            f'jackfield_prefix_cache_evicted_blocks_total{{{MODEL}, tier="memory"}}': "0+120x60",
            f'jackfield_prefix_cache_hits_total{{{MODEL}, tier="memory"}}': "0+800x60",
            f"jackfield_prefix_cache_queries_total{{{MODEL}}}": "0+1000x60",
        },
    ),
    "JackfieldPluginDisabled": (
        {f'jackfield_plugin_active{{{WHERE}, plugin="p"}}': "0x60"},
        {f'jackfield_plugin_active{{{WHERE}, plugin="p"}}': "1x60"},
    ),
    "JackfieldPluginFailing": (
        {f'jackfield_plugin_failures_total{{{WHERE}, plugin="p", hook="h"}}': "0+1x60"},
        {f'jackfield_plugin_failures_total{{{WHERE}, plugin="p", hook="h"}}': "0x30 1x30"},
    ),
    "JackfieldFallbacks": (
        {f'jackfield_backend_fallbacks_total{{{MODEL}, backend="b"}}': "0+2x60"},
        {f'jackfield_backend_fallbacks_total{{{MODEL}, backend="b"}}': "0x30 2x30"},
    ),
}
"""For each alert: what makes it fire, and what looks alike and does not. ``0+2x60``: 60 minutes, two more in each."""


def promtool(*arguments: str, given: str = "") -> str:
    result = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, check=False)
    told = result.stdout + result.stderr
    assert result.returncode == 0, told
    return told


def test_there_is_a_case_for_every_alert() -> None:
    (group,) = yaml.safe_load(alert_rules())["groups"]
    assert list(CASES) == [rule["alert"] for rule in group["rules"]]


@pytest.mark.parametrize("alert", CASES)
def test_it_fires_when_it_should_and_is_quiet_when_not(alert: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(alert_rules())
    firing, quiet = (_test(series, alert) for series in CASES[alert])
    told = _outcome(tmp_path, firing)
    assert f"alertname:{alert}" in told.replace('"', "").replace("=", ":"), told
    assert _outcome(tmp_path, quiet) == ""


def _test(series: dict[str, str], alert: str) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": "55m", "alertname": alert, "exp_alerts": []}],
    }


def _outcome(folder: Path, test: dict[str, Any]) -> str:
    """What promtool says to a test that expects no alert: nothing if there is none, else which one there is."""
    (folder / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": [test]}))
    result = subprocess.run(
        ["promtool", "test", "rules", str(folder / "test.yml")], capture_output=True, text=True, check=False
    )
    told = result.stdout + result.stderr
    assert result.returncode == (0 if "SUCCESS" in told else 1), told
    return "" if "SUCCESS" in told else told


# --- A real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    with serve(tiny_model) as server:
        with OpenAI(base_url=server.api, api_key="none") as client:
            for _ in range(3):
                client.completions.create(
                    model=server.model, prompt="Hi", max_tokens=8, extra_body={"ignore_eos": True}
                )
        httpx2.get(f"{server.url}/nothing/here")
        yield server


def test_promtool_has_nothing_to_say_of_the_metrics(server: Server) -> None:
    told = promtool("check", "metrics", given=httpx2.get(f"{server.url}/metrics").text)
    # vLLM's names that end so are kept; promtool says it of counters that a gauge's name looks like.
    assert [line for line in told.splitlines() if line] == []


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Debian's Prometheus with the exported files, scraping every second; its address."""
    (folder / "prometheus.yml").write_text(scrape_configuration([target], interval="1s"))
    # Nobody wants to wait for minutes here.
    (folder / "jackfield-alerts.yml").write_text(re.sub(r"for: \d+m", "for: 1s", alert_rules()))
    promtool("check", "config", str(folder / "prometheus.yml"))
    port = _free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"http://127.0.0.1:{port}/api/v1"
        finally:
            process.terminate()


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def until(ask: Callable[[], Any]) -> Any:
    """What ``ask`` finds, as soon as that is something."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if found := ask():
                return found
        except httpx2.HTTPError:
            pass
        time.sleep(0.3)
    raise AssertionError("it did not come")


def query(api: str, expression: str) -> list[dict[str, Any]]:
    answer = httpx2.get(f"{api}/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def test_prometheus_scrapes_a_server_and_hears_of_its_end(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    with serve(tiny_model) as other:
        target = other.url.removeprefix("http://")
        with prometheus(tmp_path, target) as api:
            with OpenAI(base_url=other.api, api_key="none") as client:

                def asked(expression: str) -> list[dict[str, Any]]:
                    client.completions.create(model=other.model, prompt="Hi", max_tokens=4)
                    return [one for one in query(api, expression) if one["value"][1] not in ("0", "NaN")]

                until(lambda: asked('up{job="jackfield"} == 1'))
                first = (
                    "histogram_quantile(0.95, sum by (le) (rate(jackfield_time_to_first_token_seconds_bucket[10s])))"
                )
                (found,) = until(lambda: asked(first))
                assert 0 < float(found["value"][1]) < 60
                (count,) = until(lambda: asked("sum(jackfield_requests_total)"))
                assert float(count["value"][1]) >= 1
                _every_panel_can_be_asked(api)
            rules = httpx2.get(f"{api}/rules").json()["data"]["groups"][0]["rules"]
            assert {rule["name"] for rule in rules} == set(CASES)
            assert {rule["name"]: rule["health"] for rule in until(lambda: _evaluated(api))} == dict.fromkeys(
                CASES, "ok"
            )
            other.process.terminate()
            other.process.wait(60)
            (alert,) = until(lambda: [one for one in _alerts(api) if one["state"] == "firing"])
            assert alert["labels"]["alertname"] == "JackfieldDown"
            assert target in alert["annotations"]["summary"]


def _evaluated(api: str) -> list[dict[str, Any]]:
    rules = httpx2.get(f"{api}/rules").json()["data"]["groups"][0]["rules"]
    return [] if any(rule["health"] == "unknown" for rule in rules) else list(rules)


def _alerts(api: str) -> list[dict[str, Any]]:
    return list(httpx2.get(f"{api}/alerts").json()["data"]["alerts"])


def _every_panel_can_be_asked(api: str) -> None:
    for panel in json.loads(dashboard())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
            query(api, expression.replace("$model", ".*"))
