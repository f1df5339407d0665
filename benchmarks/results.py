"""What was measured: samples, their medians, and how servers compare."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """Something that is measured."""

    name: str
    title: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Sample:
    """One measurement: the number that counts, and what else was seen."""

    value: float
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The middle and the spread of some samples."""

    median: float
    low: float
    high: float


@dataclass
class Results:
    """All samples of a run; the first server is the one that the others are compared with."""

    quantities: Sequence[Quantity]
    servers: Sequence[str]
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, quantity: Quantity, server: str, outcome: Sample | str) -> None:
        """Keep a sample, or the reason why there is none."""
        if isinstance(outcome, str):
            self.failures[quantity.name, server].append(outcome)
        else:
            self.samples[quantity.name, server].append(outcome)

    def summary(self, quantity: Quantity, server: str) -> Summary | None:
        """Median and spread of one cell, once it has samples."""
        values = [sample.value for sample in self.samples.get((quantity.name, server), ())]
        return Summary(median(values), min(values), max(values)) if values else None

    def ratio(self, quantity: Quantity, other: str) -> float | None:
        """How many times better the first server's median is than the other's; below 1 it is worse."""
        ours, theirs = self.summary(quantity, self.servers[0]), self.summary(quantity, other)
        if ours is None or theirs is None:
            return None
        return ours.median / theirs.median if quantity.higher_is_better else theirs.median / ours.median

    def total(self, detail: str) -> float:
        """One detail of all samples, added up."""
        return sum(sample.details[detail] for samples in self.samples.values() for sample in samples)

    def as_json(self) -> list[dict[str, Any]]:
        """Everything, for a file."""
        return [
            {
                "name": quantity.name,
                "title": quantity.title,
                "unit": quantity.unit,
                "higher_is_better": quantity.higher_is_better,
                "servers": dict(self._cells(quantity)),
                "ratios": {other: self.ratio(quantity, other) for other in self.servers[1:]},
            }
            for quantity in self.quantities
        ]

    def _cells(self, quantity: Quantity) -> Iterator[tuple[str, dict[str, Any]]]:
        for server in self.servers:
            summary = self.summary(quantity, server)
            yield (
                server,
                {
                    **(asdict(summary) if summary else {}),
                    "samples": [asdict(sample) for sample in self.samples.get((quantity.name, server), ())],
                    "failures": self.failures.get((quantity.name, server), []),
                },
            )
