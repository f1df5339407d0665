"""What Prometheus is told of routes and upstreams."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jackfield.backends.upstream import Upstream

STATES = ("closed", "open", "half_open")


class UpstreamCollector(Collector):
    """Reads how upstreams stand."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """All series; their labels are names from the settings and words of our own."""
        state = GaugeMetricFamily(
            "jackfield_upstream_state", "1 for its circuit breaker's.", labels=["upstream", "state"]
        )
        waiting = GaugeMetricFamily(
            "jackfield_upstream_requests_waiting", "Requests without a first token.", labels=["upstream"]
        )
        ended = CounterMetricFamily(
            "jackfield_upstream_requests", "Requests, by how they ended.", labels=["upstream", "outcome"]
        )
        for name, upstream in self._upstreams.items():
            for one in STATES:
                state.add_metric([name, one], float(upstream.breaker.state == one))
            waiting.add_metric([name], upstream.waiting)
            for outcome, count in upstream.outcomes.items():
                ended.add_metric([name, outcome], count)
        yield from (state, waiting, ended)


class RouteCollector(Collector):
    """Reads how the ways of routes did."""

    def __init__(self, attempts: Mapping[tuple[str, str, str, str], int]) -> None:
        self._attempts = attempts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One series."""
        labels = ["model_name", "backend", "outcome", "reason"]
        counted = CounterMetricFamily("jackfield_route_attempts", "Ways tried or left out, and why.", labels=labels)
        for names, count in self._attempts.items():
            counted.add_metric(names, count)
        yield counted
