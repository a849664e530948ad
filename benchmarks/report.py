"""Results as Markdown, which is also what the terminal shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.results import Outcome, Spread, Verdict
    from benchmarks.spec import Bar

_COARSE_FROM = 0.1  # a ratio below it has bars of 0.03
NOT_MEASURED = "not measured"


def markdown(outcome: Outcome, *, rounds: int, is_small: bool) -> str:
    """Return the report of one benchmark."""
    benchmark = outcome.benchmark
    sizes = ", ".join(f"{name} {value:,}" for name, value in benchmark.parameters.items())
    parts = [
        f"## {benchmark.name}",
        f"{benchmark.description} {sizes}; medians of {rounds} rounds, [min-max].",
    ]
    if is_small:
        parts.append(
            "**Tiny sizes (`--small`): this shows that it runs, the figures mean nothing.**"
        )
    parts.append(_table(_rows_header(outcome), _rows(outcome)))
    if benchmark.bars:
        verdicts = (outcome.verdict(bar) for bar in benchmark.bars)
        parts.append(_table(["bar", "measured", "verdict"], map(_bar_cells, verdicts)))
    return "\n\n".join(parts) + "\n"


def _rows_header(outcome: Outcome) -> list[str]:
    reference = outcome.benchmark.reference
    ratio = [f"{reference} ÷ it, time"] if reference else []
    return ["", *(METRICS[metric].label for metric in _metrics(outcome)), *ratio]


def _metrics(outcome: Outcome) -> list[str]:
    rows = [row.name for row in outcome.benchmark.rows]
    return [
        metric for metric in METRICS if any(outcome.spread(row, metric) is not None for row in rows)
    ]


def _rows(outcome: Outcome) -> Iterable[list[str]]:
    benchmark = outcome.benchmark
    for row in benchmark.rows:
        if row.name in outcome.failures:
            yield [row.name, f"failed: {outcome.failures[row.name]}"]
            continue
        cells = [_cell(outcome.spread(row.name, metric), metric) for metric in _metrics(outcome)]
        yield [row.name, *cells, *_ratio_cells(outcome, row.name)]


def _cell(spread: Spread | None, metric: str) -> str:
    if spread is None:
        return ""
    return METRICS[metric].spread_text(spread.middle, spread.low, spread.high)


def _ratio_cells(outcome: Outcome, row: str) -> list[str]:
    reference = outcome.benchmark.reference
    if not reference:
        return []
    return ["" if row == reference else _ratio(outcome.ratio(reference, row, "seconds"))]


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return NOT_MEASURED
    decimals = 2 if spread.middle >= _COARSE_FROM else 4
    ends = f"{spread.low:.{decimals}f}-{spread.high:.{decimals}f}"
    return f"{spread.middle:.{decimals}f} [{ends}]"


def _bar_cells(verdict: Verdict) -> list[str]:
    bar, metric = verdict.bar, METRICS[verdict.bar.metric]
    if not bar.against:
        limit = metric.text(bar.limit)
        measured = NOT_MEASURED if verdict.measured is None else _cell(verdict.measured, bar.metric)
    else:
        limit = f"{bar.limit:g} x {_others(bar)}"
        measured = _ratio(verdict.measured)
        if verdict.best:
            measured += f" ({verdict.best})"
    words = {True: "met", False: "**missed**", None: NOT_MEASURED}
    return [f"{bar.row}: {metric.label} ≤ {limit}", measured, words[verdict.is_met]]


def _others(bar: Bar) -> str:
    legs = [
        f"{'the best of ' if len(rows) > 1 else ''}{', '.join(rows)}"
        for rows in (bar.or_worse, bar.against)
        if rows
    ]
    return legs[0] if len(legs) == 1 else f"the worse of {' and '.join(legs)}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns also line up as plain text."""
    lines = [list(header)]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(cells + [""] * (len(header) - len(cells)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    body = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([body[0], rule, *body[1:]])
