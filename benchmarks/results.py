"""What was measured: samples, their medians, and how servers compare."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from scenarios import Sample, Scenario


@dataclass(frozen=True)
class Summary:
    """The middle and the spread of some samples."""

    median: float
    low: float
    high: float


@dataclass
class Results:
    """All samples of a run; the first server is the one that the others are compared with."""

    scenarios: Sequence[Scenario]
    servers: Sequence[str]
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, scenario: Scenario, server: str, outcome: Sample | str) -> None:
        """Keep a sample, or the reason why there is none."""
        if isinstance(outcome, str):
            self.failures[scenario.name, server].append(outcome)
        else:
            self.samples[scenario.name, server].append(outcome)

    def summary(self, scenario: Scenario, server: str) -> Summary | None:
        """Median and spread of one cell, once it has samples."""
        values = [sample.value for sample in self.samples.get((scenario.name, server), ())]
        return Summary(median(values), min(values), max(values)) if values else None

    def ratio(self, scenario: Scenario, other: str) -> float | None:
        """How many times better the first server's median is than the other's; below 1 it is worse."""
        ours, theirs = self.summary(scenario, self.servers[0]), self.summary(scenario, other)
        if ours is None or theirs is None:
            return None
        return ours.median / theirs.median if scenario.higher_is_better else theirs.median / ours.median

    def total(self, detail: str) -> float:
        """One detail of all samples, added up."""
        return sum(sample.details[detail] for samples in self.samples.values() for sample in samples)

    def as_json(self) -> list[dict[str, Any]]:
        """Everything, for a file."""
        return [
            {
                "name": scenario.name,
                "title": scenario.title,
                "unit": scenario.unit,
                "higher_is_better": scenario.higher_is_better,
                "servers": dict(self._cells(scenario)),
                "ratios": {other: self.ratio(scenario, other) for other in self.servers[1:]},
            }
            for scenario in self.scenarios
        ]

    def _cells(self, scenario: Scenario) -> Iterator[tuple[str, dict[str, Any]]]:
        for server in self.servers:
            summary = self.summary(scenario, server)
            yield (
                server,
                {
                    **(asdict(summary) if summary else {}),
                    "samples": [asdict(sample) for sample in self.samples.get((scenario.name, server), ())],
                    "failures": self.failures.get((scenario.name, server), []),
                },
            )
