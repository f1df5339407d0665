"""What Prometheus is told; `docs/monitoring.md` lists all of it."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, disable_created_metrics
from starlette.routing import BaseRoute

from jackfield.hooks.calls import Hooks
from jackfield.metrics.build import register_build
from jackfield.metrics.engines import EngineCollector
from jackfield.metrics.http import HttpMetrics
from jackfield.metrics.plugins import PluginCollector
from jackfield.metrics.requests import RequestMetrics
from jackfield.models.registry import Registry


class Metrics:
    """Everything that is measured, besides what plugins do.

    Args:
        registry: the models.
        hooks: the plugins.
    """

    def __init__(self, registry: Registry, hooks: Hooks) -> None:
        # They would be a series more for every counter and histogram, and say what process_start_time_seconds says.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.collectors = CollectorRegistry()
        register_build(self.collectors)
        self.collectors.register(EngineCollector(registry))
        self.collectors.register(PluginCollector(hooks))
        self.requests = RequestMetrics(self.collectors, registry)

    def of_routes(self, routes: Iterable[BaseRoute]) -> HttpMetrics:
        """Count the answers at ``routes``, once they are known."""
        return HttpMetrics(self.collectors, routes)
