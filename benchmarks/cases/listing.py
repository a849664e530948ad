"""The newest among very many checkpoints."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

ROWS = (Row(name="eager", contender="checkpointer"), Row(name="fresh", contender="checkpointer"))


class Newest(Benchmark):
    """`Checkpointer.latest()`: of all runs (`eager`), and of one run (`fresh`)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "newest",
            "Find the newest checkpoint of all runs (eager) and of one run (fresh).",
            parameters={"checkpoints": sizes.checkpoints, "runs": sizes.runs},
            rows=ROWS,
            bars=tuple(
                Bar(row=row.name, metric=metric, limit=limit)
                for row in ROWS
                for metric, limit in (
                    ("requests", 2),
                    ("seconds", 0.02),
                    ("first_seconds", 0.02),
                )
            ),
            plotted=("seconds", "first_seconds"),
        )
        self._sizes = sizes

    def set_up(self, lab: Lab) -> None:
        """Fill a store."""
        self._bucket = lab.new_bucket()
        source = lab.new_files(self._sizes.one)
        self._newest = lab.perform(
            self.rows[0],
            self._bucket,
            "fill",
            source=str(source),
            count=self._sizes.checkpoints,
            runs=self._sizes.runs,
        ).result
        shutil.rmtree(source)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Find the newest, and check that it is."""
        calls = [{"load_policy": row.name}] * self._sizes.calls
        found = lab.perform_all(row, self._bucket, "latest", calls)
        if set(found.results) != {self._newest[row.name]}:
            msg = f"found {found.results[0]}, the newest is {self._newest[row.name]}"
            raise BenchmarkError(msg)
        return found.sample


def newest(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark newest."""
    yield Newest(sizes)
