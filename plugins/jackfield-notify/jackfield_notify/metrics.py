"""What Prometheus is told."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Metrics:
    """Counts what becomes of notifications."""

    def __init__(self) -> None:
        self._attempts = Counter(
            "jackfield_notify_attempts",
            "Attempts to deliver a message, by target and by what became of them.",
            ["target", "result"],
            registry=None,
        )
        self._suppressed = Counter(
            "jackfield_notify_suppressed", "Messages that preferences kept back.", ["reason"], registry=None
        )

    def register(self, registry: CollectorRegistry, messages: Callable[[], dict[str, int]]) -> None:
        """Show them, and how many messages there are in each state."""
        registry.register(self._attempts)
        registry.register(self._suppressed)
        registry.register(_Messages(messages))

    def attempted(self, target: str, result: str) -> None:
        """An attempt has ended."""
        self._attempts.labels(target, result).inc()

    def suppressed(self, reason: str) -> None:
        """A message was not sent."""
        self._suppressed.labels(reason).inc()


class _Messages(Collector):
    def __init__(self, count: Callable[[], dict[str, int]]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        """Look into the outbox."""
        family = GaugeMetricFamily("jackfield_notify_messages", "Messages in the outbox, by state.", labels=["state"])
        for state, count in self._count().items():
            family.add_metric([state], count)
        yield family
