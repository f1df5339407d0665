"""How engines and models do. Nothing is counted here: their own statistics are read when somebody asks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from jackfield.engine.statistics import Statistics
from jackfield.metrics.buckets import BATCH_SIZES
from jackfield.models.registry import Registry, ServedModel

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Subject = TypeVar("Subject")
PRESSURES = ("none", "evicting", "slowing", "refusing")


@dataclass(frozen=True, slots=True)
class Series(Generic[Subject]):
    """One number of each model, or one for each value of a label."""

    family: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    """As vLLM has it, wherever it has the same thing."""
    help: str
    read: Callable[[Subject], float | Mapping[str, float]]
    label: str | None = None

    def of(self, subjects: Iterable[tuple[str, Subject]]) -> Family:
        """How it stands with each model."""
        labels = ["model_name", self.label] if self.label else ["model_name"]
        family = self.family(f"jackfield_{self.name}", self.help, labels=labels)
        for name, subject in subjects:
            value = self.read(subject)
            # Copied at once, since the engine goes on adding to it.
            for key, number in dict(value).items() if isinstance(value, Mapping) else [(None, value)]:
                family.add_metric([name] if key is None else [name, key], number)
        return family


def _pressure(statistics: Statistics) -> Mapping[str, float]:
    return {level: float(level == statistics.pressure) for level in PRESSURES}


def _kv_usage(statistics: Statistics) -> float:
    return statistics.kv_bytes / statistics.kv_pool_bytes if statistics.kv_pool_bytes > 0 else 0.0


def _memory(model: ServedModel) -> Mapping[str, float]:
    statistics = model.engine.statistics
    kinds = {
        "weights": model.plan.weights if model.plan else 0,
        "kv_cache": statistics.kv_bytes,
        "prefix_cache": dict(statistics.cache_bytes).get("memory", 0),
    }
    return kinds | {"other": max(0, statistics.device_bytes - sum(kinds.values()))}


GAUGE, COUNTER = GaugeMetricFamily, CounterMetricFamily
ENGINE: tuple[Series[Statistics], ...] = (
    Series(GAUGE, "num_requests_waiting", "Requests in the queue.", lambda s: s.waiting),
    Series(
        GAUGE,
        "num_requests_running",
        "Requests that the engine works on, whether it reads their prompts or answers them.",
        lambda s: s.reading + s.running,
    ),
    Series(GAUGE, "num_requests_reading", "Those of them whose prompts are being read.", lambda s: s.reading),
    Series(COUNTER, "num_preemptions", "Times that a request had to make room for others.", lambda s: s.preemptions),
    Series(COUNTER, "prompt_tokens", "Prompt tokens, cached or not.", lambda s: s.prompt_tokens),
    Series(COUNTER, "prompt_tokens_cached", "Those of them that were cached.", lambda s: s.cached_tokens, "tier"),
    Series(COUNTER, "generation_tokens", "Generated tokens.", lambda s: s.generated_tokens),
    Series(
        COUNTER,
        "prefix_cache_queries",
        "Prompt tokens that were looked for in the prefix cache.",
        lambda s: s.queried_tokens,
    ),
    Series(COUNTER, "prefix_cache_hits", "Those of them that were found.", lambda s: s.cached_tokens, "tier"),
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
    Series(
        GAUGE,
        "kv_cache_usage_perc",
        "Part of the memory for keys and values that requests in work have; 1 is all of it.",
        _kv_usage,
    ),
    Series(GAUGE, "device_memory_bytes", "Memory that MLX holds in all.", lambda s: s.device_bytes),
    Series(GAUGE, "memory_pressure", "1 at the level that memory is at, else 0.", _pressure, "level"),
    Series(COUNTER, "engine_restarts", "Times that the engine was started anew.", lambda s: s.restarts),
    Series(
        GAUGE,
        "model_load_seconds",
        "How long the model took to load and to generate a first token, the last time.",
        lambda s: s.load_seconds,
    ),
)
MODEL: tuple[Series[ServedModel], ...] = (
    Series(GAUGE, "engine_ready", "1 if the engine answers requests, else 0.", lambda m: float(m.engine.ready)),
    Series(GAUGE, "memory_bytes", "Memory that MLX holds, by what for.", _memory, "kind"),
)


class EngineCollector(Collector):
    """Reads the engines of all models."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        """All series, as they stand."""
        models = [(model.id, model) for model in self._registry]
        statistics = [(name, model.engine.statistics) for name, model in models]
        yield from (series.of(statistics) for series in ENGINE)
        yield from (series.of(models) for series in MODEL)
        yield _batch_sizes(statistics)


def _batch_sizes(statistics: Iterable[tuple[str, Statistics]]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "jackfield_batch_size", "Requests that get a token in the same step, by step.", labels=["model_name"]
    )
    for name, counts in statistics:
        steps = dict(counts.batch_sizes)
        buckets = [(str(bound), sum(steps[size] for size in steps if size <= bound)) for bound in BATCH_SIZES]
        buckets.append(("+Inf", sum(steps.values())))
        family.add_metric([name], buckets, sum(size * number for size, number in steps.items()))
    return family
