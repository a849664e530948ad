"""What a benchmark is: rows to measure, and bars to hold them against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from benchmarks.lab import Lab

Sample = dict[str, float]
"""One measured operation: {metric: value}; `benchmarks.metrics` says what they mean."""


class BenchmarkError(Exception):
    """A row could not be measured; the message is what the report says of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that is measured: a contender, with its options."""

    name: str
    contender: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str = ""
    """Rows of one layout read the same stored objects; empty: this row alone."""
    series: str = ""
    x: float | None = None
    """With `series`, the place in a plot of lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A limit on a metric of a row, or on its ratio to the best of other rows."""

    row: str
    metric: str
    limit: float
    against: tuple[str, ...] = ()
    """Rows of which the best one counts; empty: `limit` is in the metric's own unit."""
    or_worse: tuple[str, ...] = ()
    """Rows of which the best one counts instead, when it is worse than that of `against`: the
    legs of a way that cannot be faster than the slower of them."""


class Benchmark(ABC):
    """Rows measured in turn, round after round.

    Args:
        name: What it is called on the command line; also the name of its files.
        group: Name that runs several at once, when there is one.
        description: One line for people.
        parameters: Sizes, for the report.
        rows: What is measured.
        bars: What is asked of the figures.
        reference: Row that the others are compared with in the table.
        plotted: Metrics that get a panel in the plot.
        x_label: What `Row.x` is.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        parameters: Mapping[str, int],
        rows: tuple[Row, ...],
        bars: tuple[Bar, ...] = (),
        group: str = "",
        reference: str = "",
        plotted: tuple[str, ...] = ("seconds",),
        x_label: str = "",
    ) -> None:
        self.name = name
        self.group = group
        self.description = description
        self.parameters = dict(parameters)
        self.rows = rows
        self.bars = bars
        self.reference = reference
        self.plotted = plotted
        self.x_label = x_label

    def keep_only(self, contenders: Collection[str]) -> None:
        """Leave out the rows of other contenders, and the bars on them."""
        self.rows = tuple(row for row in self.rows if row.contender in contenders)
        kept = {row.name for row in self.rows}
        self.bars = tuple(bar for bar in self.bars if bar.row in kept)

    def set_up(self, lab: Lab) -> None:  # noqa: B027 - most need nothing
        """Make what all rounds share."""

    def begin_round(self, lab: Lab) -> None:  # noqa: B027 - most need nothing
        """Make what the rows of one round share."""

    @abstractmethod
    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure a row once.

        Raises:
            BenchmarkError: It does not run, or what it did was wrong.
        """

    def end_round(self) -> None:  # noqa: B027 - most need nothing
        """Remove what `begin_round` made."""
