"""What Prometheus is told. Nothing is counted here: the engines' own statistics are read when somebody asks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jackfield.engine.statistics import Statistics
from jackfield.hooks.calls import Hooks
from jackfield.models.registry import Registry

Family = CounterMetricFamily | GaugeMetricFamily
PRESSURES = ("none", "evicting", "slowing", "refusing")


@dataclass(frozen=True, slots=True)
class Series:
    """One number of each model, or one for each value of a label."""

    family: type[Family]
    name: str
    """As vLLM has it, wherever it has the same thing."""
    help: str
    read: Callable[[Statistics], float | Mapping[str, float]]
    label: str | None = None

    def of(self, registry: Registry) -> Family:
        """How it stands with each model."""
        labels = ["model", self.label] if self.label else ["model"]
        family = self.family(f"jackfield_{self.name}", self.help, labels=labels)
        for model in registry:
            value = self.read(model.engine.statistics)
            # Copied at once, since the engine goes on adding to it.
            for key, number in dict(value).items() if isinstance(value, Mapping) else [(None, value)]:
                family.add_metric([model.id] if key is None else [model.id, key], number)
        return family


def _pressure(statistics: Statistics) -> Mapping[str, float]:
    return {level: float(level == statistics.pressure) for level in PRESSURES}


GAUGE, COUNTER = GaugeMetricFamily, CounterMetricFamily
SERIES = (
    Series(GAUGE, "num_requests_waiting", "Requests in the queue.", lambda s: s.waiting),
    Series(GAUGE, "num_requests_reading", "Requests whose prompts are being processed.", lambda s: s.reading),
    Series(GAUGE, "num_requests_running", "Requests that are being answered.", lambda s: s.running),
    Series(COUNTER, "num_preemptions", "Times that a request had to make room for others.", lambda s: s.preemptions),
    Series(COUNTER, "prompt_tokens", "Prompt tokens, cached or not.", lambda s: s.prompt_tokens),
    Series(COUNTER, "prompt_tokens_cached", "Those of them that were cached.", lambda s: s.cached_tokens, "tier"),
    Series(COUNTER, "generation_tokens", "Generated tokens.", lambda s: s.generated_tokens),
    Series(COUNTER, "prefix_cache_hit_requests", "Requests whose whole prompt was cached.", lambda s: s.hits),
    Series(
        COUNTER,
        "prefix_cache_miss_requests",
        "Requests whose prompt was not cached, or in part only.",
        lambda s: s.misses,
        "reason",
    ),
    Series(
        COUNTER,
        "prefix_cache_evicted_blocks",
        "Blocks that had to leave the prefix cache.",
        lambda s: s.evictions,
        "tier",
    ),
    Series(GAUGE, "prefix_cache_bytes", "Size of the prefix cache.", lambda s: s.cache_bytes, "tier"),
    Series(GAUGE, "kv_cache_bytes", "Keys and values of requests in work.", lambda s: s.kv_bytes),
    Series(GAUGE, "device_memory_bytes", "Memory that MLX holds in all.", lambda s: s.device_bytes),
    Series(GAUGE, "memory_pressure", "1 at the level that memory is at, else 0.", _pressure, "level"),
    Series(COUNTER, "engine_restarts", "Times that the engine was started anew.", lambda s: s.restarts),
)


class EngineCollector(Collector):
    """Reads the engines of all models."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        """All series, as they stand."""
        return (series.of(self._registry) for series in SERIES)


class PluginCollector(Collector):
    """Reads what plugins have cost."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def collect(self) -> Iterator[Family]:
        """All series, by plugin and hook: both are the server's own words, so there are few."""
        labels = ["plugin", "hook"]
        calls = COUNTER("jackfield_plugin_calls", "Calls of plugins' hooks.", labels=labels)
        failures = COUNTER("jackfield_plugin_failures", "Calls that failed or took too long.", labels=labels)
        seconds = COUNTER("jackfield_plugin_seconds", "Seconds spent in plugins' hooks.", labels=labels)
        for plugin in self._hooks.plugins:
            for hook, counts in list(plugin.counts.items()):
                calls.add_metric([plugin.name, hook], counts.calls)
                failures.add_metric([plugin.name, hook], counts.failures)
                seconds.add_metric([plugin.name, hook], counts.seconds)
        yield from (calls, failures, seconds)
