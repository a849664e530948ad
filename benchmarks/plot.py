"""One picture for a benchmark: bars with their extremes, or lines where rows form series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.metrics import METRICS, MIB

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Outcome, Spread

_SCALES = {"B": ("MiB", MIB), "s": ("s", 1), "%": ("%", 0.01), "": ("", 1)}


def draw(outcome: Outcome, path: Path) -> None:
    """Write a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    benchmark = outcome.benchmark
    has_series = any(row.series for row in benchmark.rows)
    width = 5.5 * len(benchmark.plotted) + 2
    height = 4.5 if has_series else 1.2 + 0.4 * len(benchmark.rows)
    figure, panels = pyplot.subplots(
        1, len(benchmark.plotted), figsize=(width, height), squeeze=False, layout="constrained"
    )
    for panel, metric in zip(panels[0], benchmark.plotted, strict=True):
        unit, _ = _SCALES[METRICS[metric].unit]
        label = f"{METRICS[metric].label} ({unit})" if unit else METRICS[metric].label
        if has_series:
            _draw_lines(panel, outcome, metric, label)
        else:
            _draw_bars(panel, outcome, metric, label)
    figure.suptitle(benchmark.name)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_bars(panel: Any, outcome: Outcome, metric: str, label: str) -> None:
    names = [row.name for row in outcome.benchmark.rows]
    for place, name in enumerate(names):
        spread = outcome.spread(name, metric)
        if spread is None:
            panel.text(0, place, " failed" if name in outcome.failures else "", va="center")
            continue
        middle, below, above = _scaled(spread, metric)
        panel.barh(place, middle, xerr=[[below], [above]], capsize=3, color="C0")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlim(left=0)
    panel.set_xlabel(label)


def _draw_lines(panel: Any, outcome: Outcome, metric: str, label: str) -> None:
    rows = outcome.benchmark.rows
    for series in dict.fromkeys(row.series for row in rows):
        points = [
            (row.x, *_scaled(spread, metric))
            for row in rows
            if row.series == series and (spread := outcome.spread(row.name, metric)) is not None
        ]
        if points:
            xs, middles, below, above = zip(*points, strict=True)
            panel.errorbar(xs, middles, yerr=[below, above], marker="o", capsize=3, label=series)
    panel.set_xscale("log")
    ticks = sorted({row.x for row in rows if row.x is not None})
    panel.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_ylabel(label)
    panel.set_xlabel(outcome.benchmark.x_label)
    panel.legend()


def _scaled(spread: Spread, metric: str) -> tuple[float, float, float]:
    """Return the middle, and how far the extremes lie below and above it."""
    _, scale = _SCALES[METRICS[metric].unit]
    middle = spread.middle
    return middle / scale, (middle - spread.low) / scale, (spread.high - middle) / scale
