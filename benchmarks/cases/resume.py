"""The start of a retried task, over what moving its checkpoint's bytes takes at least."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.files import check_equal
from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

RESUMED = Row(name="find and load", contender="training")
LOADED = Row(name="load by reference", contender="checkpointer")
BARE = Row(name="obstore, the same objects", contender="obstore")


class Resume(Benchmark):
    """A new process each: it finds the newest checkpoint of its run and loads it.

    The bare transfer gets the objects that hold the files' bytes, of which it is told keys
    and sizes, onto the same disk, and verifies nothing.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "checkpoint-resume",
            "Find and load the checkpoint that a retried task begins from.",
            parameters=sizes.resumed.parameters(),
            rows=(RESUMED, LOADED, BARE),
            bars=(Bar(row=RESUMED.name, metric="overhead_seconds", limit=0.15),),
            group="training",
            reference=BARE.name,
            plotted=("seconds", "overhead_seconds"),
        )
        self._files = sizes.resumed

    def set_up(self, lab: Lab) -> None:
        """Save a checkpoint."""
        self._bucket, self._source = lab.new_bucket(), lab.new_files(self._files)
        self._saved: Any = lab.perform(
            RESUMED, self._bucket, "save", source=str(self._source)
        ).result
        self._objects = lab.server.objects(self._bucket, "objects/")

    def begin_round(self, lab: Lab) -> None:
        """Measure the bare transfer, which this round's others are compared with."""
        target = lab.new_path()
        self._bare = lab.perform(
            BARE, self._bucket, "get_objects", objects=self._objects, target=str(target)
        ).sample
        sizes = sorted(path.stat().st_size for path in target.iterdir())
        if sizes != sorted(size for _key, size in self._objects):
            msg = "the bare transfer brought other bytes"
            raise BenchmarkError(msg)
        shutil.rmtree(target)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure the way from the store to the disk; compare the files."""
        if row is BARE:
            return self._bare
        sample = self._resumed(lab) if row is RESUMED else self._loaded(lab)
        return {**sample, "overhead_seconds": sample["seconds"] - self._bare["seconds"]}

    def _resumed(self, lab: Lab) -> Sample:
        with lab.child(RESUMED, self._bucket) as child:
            tally = lab.tally(self._bucket)
            child.start("resume", [{}])
            answer = child.answer()
            counted = tally()
            check_equal(self._source, Path(answer["results"][0]))
            child.start("close", [{}])
            child.answer()
        return {
            "seconds": answer["seconds"][0],
            "cpu_seconds": answer["cpu_seconds"],
            "peak_bytes": answer["peak_bytes"],
            **counted,
        }

    def _loaded(self, lab: Lab) -> Sample:
        target = lab.new_path()
        loaded = lab.perform(LOADED, self._bucket, "load", saved=self._saved, target=str(target))
        check_equal(self._source, target)
        shutil.rmtree(target)
        return loaded.sample


def resume(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark checkpoint-resume."""
    yield Resume(sizes)
