"""A dashboard for Grafana, as its JSON model has it (grafana.com/docs, "Dashboard JSON model", schema 39)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

WIDTH = 24
"""Columns of Grafana's grid."""
HEIGHT = 8
SELECTED = '{instance=~"$instance", model_name=~"$model"}'
FAILED = '{instance=~"$instance", model_name=~"$model", status=~"5.."}'
INSTANCE = '{instance=~"$instance"}'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one for each value of its labels."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart or number."""

    title: str
    description: str
    unit: str
    """As Grafana calls it: ``s``, ``bytes``, ``reqps``, ..."""
    queries: Sequence[Query]
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    width: int = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: Sequence[Panel]


def _quantiles(title: str, metric: str, description: str) -> Panel:
    """How a histogram of seconds is spread, by model."""
    rate = f"sum by (le, model_name) (rate(jackfield_{metric}_bucket{SELECTED}[$__rate_interval]))"
    queries = [
        Query(f"histogram_quantile({quantile}, {rate})", f"p{quantile * 100:g} {{{{model_name}}}}")
        for quantile in QUANTILES
    ]
    return Panel(title, description, "s", queries)


def _rate(metric: str, by: str, selected: str = SELECTED) -> str:
    return f"sum by ({by}) (rate(jackfield_{metric}_total{selected}[$__rate_interval]))"


ROWS = (
    Row(
        "Now",
        (
            Panel(
                "Ready",
                "Whether the engine answers: 1 if it does.",
                "none",
                [Query(f"min by (model_name) (jackfield_engine_ready{SELECTED})", "{{model_name}}")],
                "stat",
                width=4,
            ),
            Panel(
                "In work",
                "Requests whose prompts are being read or that are being answered.",
                "none",
                [Query(f"sum(jackfield_num_requests_running{SELECTED})", "running")],
                "stat",
                width=4,
            ),
            Panel(
                "Waiting",
                "Requests in the queue.",
                "none",
                [Query(f"sum(jackfield_num_requests_waiting{SELECTED})", "waiting")],
                "stat",
                width=4,
            ),
            Panel(
                "Tokens",
                "Generated tokens a second, of all requests together.",
                "none",
                [Query(f"sum(rate(jackfield_generation_tokens_total{SELECTED}[$__rate_interval]))", "tokens/s")],
                "stat",
                width=4,
            ),
            Panel(
                "Errors",
                "Part of the requests that end with a status of 500 or above.",
                "percentunit",
                [
                    Query(
                        f"sum(rate(jackfield_requests_total{FAILED}[$__rate_interval])) / "
                        f"sum(rate(jackfield_requests_total{SELECTED}[$__rate_interval]))",
                        "errors",
                    )
                ],
                "stat",
                width=4,
            ),
            Panel(
                "Version",
                "What runs.",
                "none",
                [Query(f"jackfield_build_info{INSTANCE}", "{{version}}, mlx {{mlx}}")],
                "stat",
                width=4,
            ),
        ),
    ),
    Row(
        "Requests",
        (
            Panel(
                "Requests by status",
                "How requests end. 499 is a client that hung up, 429 a full queue, 503 too little memory or an end.",
                "reqps",
                [Query(_rate("requests", "status"), "{{status}}")],
                stacked=True,
            ),
            Panel(
                "Requests by endpoint",
                "What is asked for.",
                "reqps",
                [Query(_rate("requests", "endpoint"), "{{endpoint}}")],
                stacked=True,
            ),
            Panel(
                "Why answers end",
                "stop: the model's own end or a stop string; length: max_tokens or the context; tool_calls; timeout.",
                "reqps",
                [Query(_rate("request_success", "finished_reason"), "{{finished_reason}}")],
                stacked=True,
            ),
            Panel(
                "In the engine",
                "Requests that wait, whose prompts are being read, and that are in work in all.",
                "none",
                [
                    Query(f"sum(jackfield_num_requests_{state}{SELECTED})", state)
                    for state in ("waiting", "reading", "running")
                ],
            ),
            Panel(
                "Batch size",
                "How many answers get a token in the same step, in the mean.",
                "none",
                [
                    Query(
                        f"sum by (model_name) (rate(jackfield_batch_size_sum{SELECTED}[$__rate_interval])) / "
                        f"sum by (model_name) (rate(jackfield_batch_size_count{SELECTED}[$__rate_interval]))",
                        "{{model_name}}",
                    )
                ],
            ),
            Panel(
                "Backend fallbacks",
                "Requests that were answered here since somebody else could not.",
                "reqps",
                [Query(_rate("backend_fallbacks", "backend"), "{{backend}}")],
            ),
        ),
    ),
    Row(
        "Latency",
        (
            _quantiles("Time to first token", "time_to_first_token_seconds", "From a request's arrival."),
            _quantiles("Between tokens", "inter_token_latency_seconds", "How evenly a stream comes."),
            _quantiles("Whole request", "e2e_request_latency_seconds", "From its arrival to its end."),
            _quantiles("Waiting", "request_queue_time_seconds", "Until the engine begins with it."),
            _quantiles("Reading the prompt", "request_prefill_time_seconds", "Less when the prefix cache has it."),
            _quantiles("Answering", "request_decode_time_seconds", "From the first to the last token."),
        ),
    ),
    Row(
        "Tokens",
        (
            Panel(
                "Tokens a second",
                "Prompt tokens, cached or not, and generated ones.",
                "none",
                [
                    Query(_rate("prompt_tokens", "model_name"), "prompt {{model_name}}"),
                    Query(_rate("generation_tokens", "model_name"), "generated {{model_name}}"),
                ],
            ),
            Panel(
                "Prefix cache hits",
                "Part of the prompt tokens that need not be read, by where they were.",
                "percentunit",
                [
                    Query(
                        f"{_rate('prefix_cache_hits', 'tier')} / ignoring(tier) group_left "
                        f"sum(rate(jackfield_prefix_cache_queries_total{SELECTED}[$__rate_interval]))",
                        "{{tier}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Why prompts were not cached",
                "Requests by the reason; docs/engine.md explains them.",
                "reqps",
                [Query(_rate("prefix_cache_miss_requests", "reason"), "{{reason}}")],
                stacked=True,
            ),
        ),
    ),
    Row(
        "Memory",
        (
            Panel(
                "What MLX holds",
                "By what for.",
                "bytes",
                [Query(f"sum by (kind) (jackfield_memory_bytes{SELECTED})", "{{kind}}")],
                stacked=True,
            ),
            Panel(
                "Keys and values in use",
                "Part of the memory for them that requests in work have; at 1 requests have to make room.",
                "percentunit",
                [Query(f"max by (model_name) (jackfield_kv_cache_usage_perc{SELECTED})", "{{model_name}}")],
            ),
            Panel(
                "Prefix cache",
                "Its size, in memory and on disk.",
                "bytes",
                [Query(f"sum by (tier) (jackfield_prefix_cache_bytes{SELECTED})", "{{tier}}")],
            ),
            Panel(
                "Evictions and preemptions",
                "Blocks that had to leave the prefix cache, and requests that had to make room.",
                "none",
                [
                    Query(_rate("prefix_cache_evicted_blocks", "tier"), "blocks, {{tier}}"),
                    Query(_rate("num_preemptions", "model_name"), "preemptions {{model_name}}"),
                ],
            ),
            Panel(
                "Memory pressure",
                "The level that memory is at: at refusing, new requests get a 503.",
                "none",
                [Query(f"max by (level) (jackfield_memory_pressure{SELECTED})", "{{level}}")],
            ),
            Panel(
                "Engine restarts",
                "Times that the engine failed and was started again.",
                "none",
                [Query(f"increase(jackfield_engine_restarts_total{SELECTED}[$__rate_interval])", "{{model_name}}")],
            ),
        ),
    ),
    Row(
        "Plugins",
        (
            Panel(
                "Time in plugins",
                "Seconds a second, by plugin.",
                "percentunit",
                [Query(_rate("plugin_seconds", "plugin", INSTANCE), "{{plugin}}")],
                width=12,
            ),
            Panel(
                "Failures of plugins",
                "Calls that failed or took too long.",
                "none",
                [Query(_rate("plugin_failures", "plugin, hook", INSTANCE), "{{plugin}} {{hook}}")],
                width=12,
            ),
        ),
    ),
)


def dashboard() -> str:
    """The dashboard, to be imported into Grafana."""
    document = {
        "title": "Jackfield",
        "uid": "jackfield",
        "description": "What a Jackfield server does: requests, latencies, tokens, memory, plugins.",
        "tags": ["jackfield", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }
    return json.dumps(document, indent=2) + "\n"


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    for name, label, of in (("instance", "Server", "instance"), ("model", "Model", "model_name")):
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": f"label_values(jackfield_engine_ready, {of})", "refId": name},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


def _panels() -> Iterator[dict[str, Any]]:
    numbers, y = count(1), 0
    for row in ROWS:
        yield {
            "id": next(numbers),
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            "panels": [],
        }
        y += 1
        x, height = 0, HEIGHT if row.panels[0].kind == "timeseries" else HEIGHT // 2
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            yield _panel(panel, next(numbers), {"x": x, "y": y, "w": panel.width, "h": height})
            x += panel.width
        y += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    stacking = {"mode": "normal" if panel.stacked else "none"}
    drawn = {"stacking": stacking, "fillOpacity": 25 if panel.stacked else 5, "showPoints": "never"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": drawn if panel.kind == "timeseries" else {}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(65 + index), "datasource": SOURCE, "expr": query.expression, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
    }
