"""How plugins do, and what they have cost."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jackfield.hooks.calls import Hooks


class PluginCollector(Collector):
    """Reads the counts of all plugins."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """All series, by plugin and hook: both are the server's own words, so there are few."""
        labels = ["plugin", "hook"]
        active = GaugeMetricFamily("jackfield_plugin_active", "1 if the plugin is at work, else 0.", labels=["plugin"])
        calls = CounterMetricFamily("jackfield_plugin_calls", "Calls of plugins' hooks.", labels=labels)
        failures = CounterMetricFamily(
            "jackfield_plugin_failures", "Calls that failed or took too long.", labels=labels
        )
        seconds = CounterMetricFamily("jackfield_plugin_seconds", "Seconds spent in plugins' hooks.", labels=labels)
        for plugin in self._hooks.plugins:
            active.add_metric([plugin.name], float(plugin.active))
            for hook, counts in list(plugin.counts.items()):
                calls.add_metric([plugin.name, hook], counts.calls)
                failures.add_metric([plugin.name, hook], counts.failures)
                seconds.add_metric([plugin.name, hook], counts.seconds)
        yield from (active, calls, failures, seconds)
