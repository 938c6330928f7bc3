"""What the samples say, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..table import Table
from .load import Sample
from .scenarios import CROWD, FIRST_BYTE, PACED, REQUESTS, SLOW, UNPACED, Scenario

DIRECT = "direct"
GATEWAYS = ("gateway-uvicorn", "gateway-granian")


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a sample.

    Attributes:
        is_added: it is told on top of what the upstream takes directly, in the same round.
        has_direct: it tells something of the upstream alone.
    """

    title: str
    unit: str
    scenarios: tuple[Scenario, ...]
    value: Callable[[Sample], float]
    is_added: bool = False
    has_direct: bool = True


def _rate(sample: Sample) -> float:
    return sample.answers / sample.seconds


def _median(sample: Sample) -> float:
    return sample.median * 1e6


def _first_byte(sample: Sample) -> float:
    return sample.first_byte * 1e6


RATE = Metric("requests/s", "requests_per_second", REQUESTS, _rate)
ADDED = Metric("added median, us", "microseconds", REQUESTS[:1], _median, is_added=True, has_direct=False)
STREAMS = Metric("streams/s", "streams_per_second", (UNPACED,), _rate)
CHUNK_CPU = Metric("us of CPU a chunk", "microseconds", (UNPACED, PACED, CROWD), lambda s: s.cpu / s.chunks * 1e6)
FIRST = Metric("first byte, us", "microseconds", (FIRST_BYTE, PACED), _first_byte)
MEMORY = Metric("kB a stream, at the end", "kilobytes", (CROWD, SLOW), lambda s: s.grown[1] / 1000, has_direct=False)
METRICS = (
    RATE,
    Metric("median, us", "microseconds", REQUESTS, _median),
    Metric("99th percentile, us", "microseconds", REQUESTS, lambda s: s.percentile99 * 1e6),
    ADDED,
    Metric("us of CPU a request", "microseconds", REQUESTS, lambda s: s.cpu / s.answers * 1e6),
    STREAMS,
    CHUNK_CPU,
    FIRST,
    Metric("added first byte, us", "microseconds", (FIRST_BYTE, PACED), _first_byte, is_added=True, has_direct=False),
    Metric("kB a stream, early", "kilobytes", (CROWD, SLOW), lambda s: s.grown[0] / 1000, has_direct=False),
    MEMORY,
)


class Results:
    """All samples, one for each round."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, str], list[Sample]] = {}

    def add(self, side: str, scenario: Scenario, sample: Sample) -> None:
        self._samples.setdefault((side, scenario.name), []).append(sample)

    def values(self, metric: Metric, side: str, scenario: Scenario) -> list[float]:
        """One for each round."""
        values = [metric.value(sample) for sample in self._samples.get((side, scenario.name), ())]
        if not metric.is_added or not values:
            return values
        direct = map(metric.value, self._samples[DIRECT, scenario.name])
        return [value - alone for value, alone in zip(values, direct, strict=True)]

    def table(self, metric: Metric, sides: Sequence[str], base: str) -> Table:
        """All sides, and their ratios to one of them."""
        has_ratios = metric.has_direct or base != DIRECT
        title = f"{metric.title}, ratio to {base}" if has_ratios else metric.title
        table = Table(title, [scenario.name for scenario in metric.scenarios], {}, unit=metric.unit)
        for side in sides:
            for scenario in metric.scenarios:
                values = self.values(metric, side, scenario)
                others = self.values(metric, base, scenario) if has_ratios else [None] * len(values)
                for value, other in zip(values, others, strict=True):
                    table.add(side, scenario.name, value, other)
        return table


@dataclass(frozen=True, slots=True)
class Goal:
    """What a metric has to be in a scenario: a ratio to another side, or where there is none, a number."""

    metric: Metric
    scenario: Scenario
    other: str | None
    bound: float
    is_least: bool

    def __str__(self) -> str:
        bound = f"{'>=' if self.is_least else '<='} {self.bound:g}"
        return f"{self.metric.title}, {self.scenario.name}: {bound}{f' x {self.other}' if self.other else ''}"

    def reached(self, results: Results, side: str) -> float | None:
        """The median over the rounds; None was not measured."""
        values = results.values(self.metric, side, self.scenario)
        if self.other is not None:
            others = results.values(self.metric, self.other, self.scenario)
            values = [value / other for value, other in zip(values, others, strict=False) if other]
        return median(values) if values else None

    def is_met(self, reached: float) -> bool:
        return reached >= self.bound if self.is_least else reached <= self.bound


GOALS = (
    Goal(RATE, REQUESTS[2], "litellm", 60, is_least=True),
    Goal(RATE, REQUESTS[2], "httpx", 20, is_least=True),
    Goal(RATE, REQUESTS[2], "nginx", 0.2, is_least=True),
    Goal(ADDED, REQUESTS[0], "nginx", 4, is_least=False),
    Goal(STREAMS, UNPACED, "nginx", 1, is_least=True),
    Goal(CHUNK_CPU, UNPACED, "nginx", 1.2, is_least=False),
    Goal(FIRST, FIRST_BYTE, "nginx", 1.5, is_least=False),
    Goal(MEMORY, CROWD, None, 30, is_least=False),
)


def judged(results: Results, sides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One record for each goal and gateway; what was not measured is neither met nor missed."""
    for goal in GOALS:
        for side in (side for side in GATEWAYS if side in sides):
            reached = goal.reached(results, side)
            yield {
                "goal": str(goal),
                "side": side,
                "reached": None if reached is None else round(reached, 3),
                "is_met": None if reached is None else goal.is_met(reached),
            }
