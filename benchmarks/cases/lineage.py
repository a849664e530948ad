"""A run that has saved very many checkpoints: listing them, and the end of its task."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.process import ChildProcess
    from benchmarks.spec import Sample

READ = Row(name="with metadata", contender="checkpointer")
LISTED = Row(name="without metadata", contender="checkpointer")
_OPERATIONS = {READ.name: "read_all", LISTED.name: "entries"}
_METADATA = {"step": 1_000, "epoch": 3, "loss": 0.4375, "note": "as a training run has it"}
_POLL_SECONDS = 0.005


class Listing(Benchmark):
    """`Checkpointer.list()`, which reads each reference, and `Checkpointer.entries()`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "checkpoint-list",
            "List the checkpoints of a run, with their metadata and without.",
            parameters={"checkpoints": sizes.listed, "calls": sizes.calls},
            rows=(READ, LISTED),
            bars=(
                *(
                    Bar(row=row.name, metric=metric, limit=limit)
                    for row, limit in ((READ, 1.0), (LISTED, 0.02))
                    for metric in ("seconds", "first_seconds")
                ),
                Bar(row=LISTED.name, metric="requests", limit=2),
            ),
            group="training",
            plotted=("seconds", "requests"),
        )
        self._sizes = sizes

    def set_up(self, lab: Lab) -> None:
        """Fill a store."""
        self._bucket = lab.new_bucket()
        source = lab.new_files(self._sizes.one)
        call = {"source": str(source), "count": self._sizes.listed, "runs": 1}
        filled = lab.perform(READ, self._bucket, "fill", **call, metadata=_METADATA)
        self._newest = filled.result["fresh"]
        shutil.rmtree(source)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """List, and check that all are there."""
        calls: list[dict[str, Any]] = [{}] * self._sizes.calls
        listed = lab.perform_all(row, self._bucket, _OPERATIONS[row.name], calls)
        for found in listed.results:
            if len(set(found)) != self._sizes.listed or found[0] != self._newest:
                msg = f"listed {len(set(found))} checkpoints, the first is {found[0]}"
                raise BenchmarkError(msg)
        return listed.sample


class End(Benchmark):
    """From the return of a task's body to its flow: requests to the store, and time."""

    def __init__(self, sizes: Sizes) -> None:
        rows = {count: f"{count:,} checkpoints" for count in sizes.ended}
        super().__init__(
            "checkpoint-end",
            "End a Prefect task that has saved checkpoints.",
            parameters={"most_checkpoints": sizes.ended[-1]},
            rows=tuple(Row(name=name, contender="prefect-task") for name in rows.values()),
            # None for each checkpoint: what is left is a number that does not grow.
            bars=tuple(Bar(row=name, metric="requests", limit=2) for name in rows.values()),
            group="training",
        )
        self._counts = {name: count for count, name in rows.items()}

    def set_up(self, lab: Lab) -> None:
        """Start Prefect."""
        lab.start_prefect()

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Run the flow, and count from when all is saved."""
        bucket, saved, go_on = lab.new_bucket(), lab.new_path(), lab.new_path()
        count = self._counts[row.name]
        with lab.child(row, bucket) as child:
            child.start("train", [{"checkpoints": count, "saved": str(saved), "go_on": str(go_on)}])
            _wait_for(saved, child)
            tally = lab.tally(bucket)
            go_on.touch()
            answer = child.answer()
            counted = tally()
        references = lab.server.objects(bucket, "refs/")
        if len(references) != count:
            msg = f"{len(references)} checkpoints are in the store, not {count}"
            raise BenchmarkError(msg)
        lab.drop_bucket(bucket)
        return {"seconds": answer["results"][0], **counted}


def _wait_for(path: Path, child: ChildProcess) -> None:
    while not path.exists():
        if child.has_ended():
            child.answer()  # raises with its last words, when it died
            msg = "the flow ended before it had saved all"
            raise BenchmarkError(msg)
        time.sleep(_POLL_SECONDS)


def lineages(sizes: Sizes) -> Iterator[Benchmark]:
    """Return checkpoint-list and checkpoint-end."""
    yield Listing(sizes)
    yield End(sizes)
