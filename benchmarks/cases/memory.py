"""Memory of saves and loads far larger than it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.cases.sizes import MIB
from benchmarks.cases.transfer import measured_load
from benchmarks.spec import Bar, Benchmark, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

ROWS = (Row(name="save", contender="hfflows"), Row(name="load", contender="hfflows"))


class Memory(Benchmark):
    """Peak memory above what the process had before the operation."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "memory",
            "Save and load far more than fits into the memory that may be used.",
            parameters=sizes.huge.parameters(),
            rows=ROWS,
            bars=tuple(Bar(row=row.name, metric="peak_bytes", limit=400 * MIB) for row in ROWS),
            plotted=("peak_bytes",),
        )
        self._files = sizes.huge

    def begin_round(self, lab: Lab) -> None:
        """Make the files of this round."""
        self._source = lab.new_files(self._files)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Save and load; the row says which of them counts."""
        bucket = lab.new_bucket()
        saved = lab.perform(row, bucket, "save", source=str(self._source))
        loaded = measured_load(lab, row, bucket, saved.result, self._source)
        lab.drop_bucket(bucket)
        return saved.sample if row.name == "save" else loaded

    def end_round(self) -> None:
        """Remove the files of this round."""
        shutil.rmtree(self._source)


def memory(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark memory."""
    yield Memory(sizes)
