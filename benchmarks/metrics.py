"""What is measured, and how a figure is written."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024
_ONE_DECIMAL_FROM = 10
_TWO_DECIMALS_FROM = 0.01


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a sample."""

    label: str
    unit: str
    """`s`, `B`, `%` or empty for a plain number."""

    def text(self, value: float) -> str:
        """Return a value as people read it."""
        factor, unit = self._scale(value)
        return f"{_number(value / factor)} {unit}".rstrip()

    def spread_text(self, middle: float, low: float, high: float) -> str:
        """Return a value between its extremes, all in one unit."""
        factor, _ = self._scale(middle)
        ends = [_number(value / factor) for value in (low, high)]
        return self.text(middle) + (f" [{ends[0]}-{ends[1]}]" if ends[0] != ends[1] else "")

    def _scale(self, value: float) -> tuple[float, str]:
        if self.unit == "s":
            return (1, "s") if value >= 1 else (0.001, "ms")
        if self.unit == "B":
            return (MIB, "MiB") if value >= MIB else (KIB, "KiB")
        return (0.01, "%") if self.unit == "%" else (1, "")


def _number(value: float) -> str:
    if value == round(value):
        return f"{value:,.0f}"
    if abs(value) < _TWO_DECIMALS_FROM:
        return f"{value:.1e}"
    return f"{value:,.1f}" if abs(value) >= _ONE_DECIMAL_FROM else f"{value:,.2f}"


METRICS = {
    "seconds": Metric("time", "s"),
    "first_seconds": Metric("first call", "s"),
    "committed_seconds": Metric("until committed", "s"),
    "overhead_seconds": Metric("over the bare transfer", "s"),
    "steps_per_second": Metric("steps a second", ""),
    "undisturbed_per_second": Metric("undisturbed", ""),
    "throughput_lost": Metric("throughput lost", "%"),
    "lost_seconds": Metric("lost to a save", "s"),
    "cpu_seconds": Metric("CPU", "s"),
    "peak_bytes": Metric("peak memory", "B"),
    "requests": Metric("requests", ""),
    "bytes_to_server": Metric("to the server", "B"),
    "bytes_from_server": Metric("from the server", "B"),
    "bytes_before_kill": Metric("before the kill", "B"),
    "sent_per_byte": Metric("sent ÷ size", ""),
    "hub_requests": Metric("Hub requests", ""),
    "hub_bytes": Metric("from the Hub", "B"),
    "hub_per_byte": Metric("from the Hub ÷ size", ""),
    "disk_bytes": Metric("written to disk", "B"),
    "stored_bytes": Metric("stored", "B"),
    "parity_difference": Metric("largest difference", ""),
    "older_exporter": Metric("by the older exporter", ""),
    "stored_per_size": Metric("stored ÷ one checkpoint", ""),
}
"""In the order of the table's columns. All but the seconds are per call when a sample has
several calls; `seconds` is their median and `first_seconds` the first."""
