"""Rounds: every row in turn on the same data, the first round only to warm up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.results import Outcome
from benchmarks.spec import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.lab import Lab
    from benchmarks.spec import Benchmark, Row

WARM_UP = 0


def run(benchmark: Benchmark, lab: Lab, *, rounds: int, say: Callable[[str], None]) -> Outcome:
    """Measure a benchmark.

    A row that fails is reported with its error and left out of the rounds that follow.

    Args:
        benchmark: What to measure.
        lab: Where.
        rounds: How often, after the warm-up.
        say: Gets a line for each thing measured.
    """
    outcome = Outcome(benchmark)
    benchmark.set_up(lab)
    for number in range(WARM_UP, rounds + 1):
        benchmark.begin_round(lab)
        try:
            for row in _in_turn(benchmark.rows, number):
                if row.name not in outcome.failures:
                    say(f"{benchmark.name}: {_round_name(number, rounds)}: {row.name}")
                    _measure(benchmark, lab, row, number, outcome)
        finally:
            benchmark.end_round()
    return outcome


def _measure(benchmark: Benchmark, lab: Lab, row: Row, number: int, outcome: Outcome) -> None:
    try:
        sample = benchmark.measure(lab, row)
    except BenchmarkError as error:
        outcome.failures[row.name] = str(error)
        return
    if number != WARM_UP:
        outcome.add(row.name, number, sample)


def _in_turn(rows: tuple[Row, ...], number: int) -> tuple[Row, ...]:
    """Return the rows with another one first in each round: none always follows the same."""
    first = number % len(rows)
    return rows[first:] + rows[:first]


def _round_name(number: int, rounds: int) -> str:
    return "warm-up" if number == WARM_UP else f"round {number} of {rounds}"
