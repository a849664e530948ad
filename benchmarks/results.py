"""From samples to medians, ratios and verdicts."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.spec import Bar, Benchmark, Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds: its median, or a ratio of medians, between its extremes."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a bar."""

    bar: Bar
    measured: Spread | None
    """`None` when a row that it needs did not run."""
    best: str = ""
    """The row it was compared with."""

    @property
    def is_met(self) -> bool | None:
        """Return whether the bar holds; `None` when nobody knows."""
        return None if self.measured is None else self.measured.middle <= self.bar.limit


@dataclass(slots=True)
class Outcome:
    """All that was measured of a benchmark."""

    benchmark: Benchmark
    samples: dict[str, dict[int, Sample]] = field(default_factory=dict)
    """{row: {round: sample}}."""
    failures: dict[str, str] = field(default_factory=dict)
    """{row: why it was given up}."""

    def add(self, row: str, number: int, sample: Sample) -> None:
        """Keep a sample."""
        self.samples.setdefault(row, {})[number] = sample

    def spread(self, row: str, metric: str) -> Spread | None:
        """Return a row's median and extremes of a metric, if it was measured."""
        values = self._values(row, metric).values()
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def ratio(self, row: str, other: str, metric: str) -> Spread | None:
        """Return the ratio of two rows' medians, and the extremes of the rounds' ratios.

        `None` when one of them was not measured, or the other is zero.
        """
        ours, theirs = self._values(row, metric), self._values(other, metric)
        rounds = ours.keys() & theirs.keys()
        if not rounds or not all(theirs.values()):
            return None
        each = [ours[number] / theirs[number] for number in rounds]
        middle = statistics.median(ours.values()) / statistics.median(theirs.values())
        return Spread(middle, min(each), max(each))

    def verdict(self, bar: Bar) -> Verdict:
        """Hold a bar against what was measured."""
        if not bar.against:
            return Verdict(bar, self.spread(bar.row, bar.metric))
        legs = [self._medians(rows, bar.metric) for rows in (bar.against, bar.or_worse) if rows]
        if not all(legs):
            return Verdict(bar, None)
        _, best = max(min(medians) for medians in legs)
        return Verdict(bar, self.ratio(bar.row, best, bar.metric), best)

    def to_json(self) -> dict[str, Any]:
        """Return the raw rounds, and what follows from them."""
        benchmark = self.benchmark
        return {
            "name": benchmark.name,
            "description": benchmark.description,
            "parameters": benchmark.parameters,
            "rows": {
                row.name: {
                    "contender": row.contender,
                    "options": dict(row.options),
                    "rounds": [
                        {"round": number, **sample}
                        for number, sample in self.samples.get(row.name, {}).items()
                    ],
                    "error": self.failures.get(row.name),
                }
                for row in benchmark.rows
            },
            "bars": [_verdict_json(self.verdict(bar)) for bar in benchmark.bars],
        }

    def _medians(self, rows: tuple[str, ...], metric: str) -> list[tuple[float, str]]:
        """Return (median, row) of those that were measured."""
        spreads = [(self.spread(row, metric), row) for row in rows]
        return [(spread.middle, row) for spread, row in spreads if spread is not None]

    def _values(self, row: str, metric: str) -> dict[int, float]:
        """Return {round: value}; nothing of a row that failed in any round."""
        if row in self.failures:
            return {}
        return {
            number: sample[metric]
            for number, sample in self.samples.get(row, {}).items()
            if metric in sample
        }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    bar, measured = verdict.bar, verdict.measured
    return {
        "row": bar.row,
        "metric": bar.metric,
        "limit": bar.limit,
        "against": list(bar.against),
        "or_worse": list(bar.or_worse),
        "best": verdict.best or None,
        "measured": None if measured is None else [measured.middle, measured.low, measured.high],
        "is_met": verdict.is_met,
    }
