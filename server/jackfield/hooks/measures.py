"""Plugins' metrics: one that fails when it is read keeps nobody from reading the others."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector


class PluginRegistry(CollectorRegistry):
    """One plugin's metrics, whose names nobody else may have.

    Args:
        shared: knows the names of all.
    """

    def __init__(self, shared: CollectorRegistry) -> None:
        super().__init__()
        self._shared = shared

    def register(self, collector: Collector) -> None:
        """Take in a metric.

        Raises:
            ValueError: its name is taken.
        """
        self._shared.register(_Named(collector))
        super().register(collector)


class _Named(Collector):
    """Holds the names of a collector, without what it measures."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def describe(self) -> Iterator[Metric]:
        """Its names."""
        yield from getattr(self._collector, "describe", lambda: ())()

    def collect(self) -> Iterator[Metric]:
        """Nothing."""
        yield from ()
