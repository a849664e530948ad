"""What one small artifact costs as the store grows."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from benchmarks.files import check_equal
from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

OPERATIONS = ("save", "load", "latest")
_RUNS = 10


def _row_name(operation: str, stored: int) -> str:
    return f"{operation} at {stored:,}"


class Growth(Benchmark):
    """One operation on stores that hold ever more checkpoints of the same task.

    All in one lineage, where a listing has the most to go through.
    """

    def __init__(self, sizes: Sizes) -> None:
        least, most = sizes.stores[0], sizes.stores[-1]
        super().__init__(
            "growth",
            "Save, load and find the newest small checkpoint while the store holds ever more.",
            parameters={**sizes.one.parameters(), "calls": sizes.calls},
            rows=tuple(
                Row(
                    name=_row_name(operation, stored),
                    contender="checkpointer",
                    options={},
                    series=operation,
                    x=stored,
                )
                for operation in OPERATIONS
                for stored in sizes.stores
            ),
            bars=tuple(
                Bar(
                    row=_row_name(operation, most),
                    metric=metric,
                    limit=1.2,
                    against=(_row_name(operation, least),),
                )
                for operation in OPERATIONS
                for metric in ("seconds", "requests")
            ),
            plotted=("seconds", "requests"),
            x_label="checkpoints in the store",
        )
        self._sizes = sizes

    def set_up(self, lab: Lab) -> None:
        """Fill a store for each size."""
        self._source = lab.new_files(self._sizes.one)
        self._stores: dict[float, tuple[str, Any]] = {}
        for stored in self._sizes.stores:
            bucket = lab.new_bucket()
            filled = lab.perform(
                self.rows[0], bucket, "fill", source=str(self._source), count=stored, runs=_RUNS
            )
            self._stores[stored] = bucket, filled.result["saved"]

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Do the row's operation in the store of its size."""
        assert row.x is not None  # noqa: S101 - every row of ours has one
        bucket, saved = self._stores[row.x]
        if row.series == "save":
            return self._save(lab, row, bucket)
        if row.series == "load":
            return self._load(lab, row, bucket, saved)
        calls = [{"load_policy": "eager"}] * self._sizes.calls
        found = lab.perform_all(row, bucket, "latest", calls)
        if None in found.results:
            msg = "found no checkpoint"
            raise BenchmarkError(msg)
        return found.sample

    def _save(self, lab: Lab, row: Row, bucket: str) -> Sample:
        sources = [lab.new_files(self._sizes.one) for _ in range(self._sizes.calls)]
        saved = lab.perform_all(
            row, bucket, "save", [{"source": str(source)} for source in sources]
        )
        lab.check_saved(row, bucket, saved.results[-1], sources[-1])
        _remove(sources)
        return saved.sample

    def _load(self, lab: Lab, row: Row, bucket: str, saved: Any) -> Sample:
        targets = [lab.new_path() for _ in range(self._sizes.calls)]
        loaded = lab.perform_all(
            row, bucket, "load", [{"saved": saved, "target": str(target)} for target in targets]
        )
        for target in targets:
            check_equal(self._source, target)
        _remove(targets)
        return loaded.sample


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory)


def growth(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark growth."""
    yield Growth(sizes)
