"""What a save beside training costs it: the wait until it may go on, and its steps meanwhile."""

from __future__ import annotations

import os
import shutil
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

GROUP = "training"
WAITS = Row(name="synchronous", contender="training")
MOVED = Row(name="in the background, given away", contender="training")
COPIED = Row(name="in the background, copied", contender="training")

LOOP = Row(name="hfflows", contender="torch-loop")
LOOP_ON_DISK = Row(
    name="hfflows, no server here", contender="torch-loop", options={"in_directory": True}
)
LOOP_OF_ONE = Row(name="hfflows, torch on one core", contender="torch-loop", options={"threads": 1})
EQUAL = Row(name="hfflows, nice=0", contender="torch-loop", options={"nice": 0})
EQUAL_ON_DISK = Row(
    name="hfflows, no server here, nice=0",
    contender="torch-loop",
    options={"in_directory": True, "nice": 0},
)
EQUAL_OF_ONE = Row(
    name="hfflows, torch on one core, nice=0",
    contender="torch-loop",
    options={"threads": 1, "nice": 0},
)
LOOP_BY_HAND = Row(name="obstore by hand", contender="torch-loop", options={"uploader": "obstore"})
_SAVES = 2


class Blocking(Benchmark):
    """The wait of a training loop for `save`, and the time until that save is committed."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "checkpoint-blocking",
            "Save, and wait until training may go on.",
            parameters=sizes.large.parameters(),
            rows=(WAITS, MOVED, COPIED),
            bars=tuple(
                Bar(row=row.name, metric="seconds", limit=limit, against=(WAITS.name,))
                for row, limit in ((MOVED, 0.05), (COPIED, 0.2))
            ),
            group=GROUP,
            plotted=("seconds", "committed_seconds"),
        )
        self._files = sizes.large

    def set_up(self, lab: Lab) -> None:
        """Find out whether writes are counted here."""
        self._counts_disk = lab.counts_disk()

    def begin_round(self, lab: Lab) -> None:
        """Make the files of this round."""
        self._source = lab.new_files(self._files)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure the wait; load what was committed and compare."""
        bucket = lab.new_bucket()
        source = _linked(self._source, lab.new_path())
        with lab.child(row, bucket) as child:
            tally = lab.tally(bucket)
            if row is WAITS:
                child.start("save", [{"source": str(source)}])
                waited = child.answer()
                saved, until_committed, total = waited["results"][0], waited["seconds"][0], waited
            else:
                child.start("put_aside", [{"source": str(source), "move": row is MOVED}])
                waited = child.answer()
                child.start("committed", [{}])
                rest = child.answer()
                committed = rest["results"][0]
                saved, until_committed = committed["ref"], committed["seconds"]
                total = {
                    "cpu_seconds": waited["cpu_seconds"] + rest["cpu_seconds"],
                    "peak_bytes": max(waited["peak_bytes"], rest["peak_bytes"]),
                }
                if row is MOVED and waited["results"] != ["move"]:
                    msg = f"given away, and put aside by {waited['results'][0]}"
                    raise BenchmarkError(msg)
            counted = tally()
            _close(child)
        lab.check_saved(row, bucket, saved, self._source)
        lab.drop_bucket(bucket)
        shutil.rmtree(source, ignore_errors=True)
        disk = {"disk_bytes": waited["disk_bytes"]} if self._counts_disk else {}
        return {
            "seconds": waited["seconds"][0],
            "committed_seconds": until_committed,
            "cpu_seconds": total["cpu_seconds"],
            "peak_bytes": total["peak_bytes"],
            **counted,
            **disk,
        }

    def end_round(self) -> None:
        """Remove the files of this round."""
        shutil.rmtree(self._source)


class Throughput(Benchmark):
    """Steps a second of one process, undisturbed and while it saves."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "checkpoint-throughput",
            "Train in torch on the processor while checkpoints are saved in the background.",
            parameters={**sizes.large.parameters(), "saves": _SAVES},
            rows=(
                *(LOOP, LOOP_ON_DISK, LOOP_OF_ONE),
                *(EQUAL, EQUAL_ON_DISK, EQUAL_OF_ONE),
                LOOP_BY_HAND,
            ),
            bars=tuple(
                Bar(row=row.name, metric="throughput_lost", limit=0.15)
                for row in (LOOP, LOOP_ON_DISK, LOOP_OF_ONE)
            ),
            group=GROUP,
            plotted=("throughput_lost", "lost_seconds"),
        )
        self._files, self._seconds = sizes.large, sizes.train_seconds

    def begin_round(self, lab: Lab) -> None:
        """Make the files of this round."""
        self._sources = [lab.new_files(self._files) for _ in range(_SAVES)]

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Train and save; load the last of it and compare."""
        bucket = lab.new_bucket()
        sources = [_linked(source, lab.new_path()) for source in self._sources]
        with lab.child(row, bucket) as child:
            tally = lab.tally(bucket)
            call = {"sources": [str(source) for source in sources], "seconds": self._seconds}
            child.start("train", [call])
            answer = child.answer()
            counted = tally()
            trained = answer["results"][0]
            lab.check_saved(row, bucket, trained["saved"], self._sources[-1])
            _close(child)
        lab.drop_bucket(bucket)
        for source in sources:
            shutil.rmtree(source, ignore_errors=True)
        lost = 1 - trained["while_saving"] / trained["undisturbed"]
        return {
            "seconds": statistics.median(trained["save_seconds"]),
            "steps_per_second": trained["while_saving"],
            "undisturbed_per_second": trained["undisturbed"],
            "throughput_lost": lost,
            "lost_seconds": lost * statistics.mean(trained["save_seconds"]),
            "peak_bytes": answer["peak_bytes"],
            **counted,
        }

    def end_round(self) -> None:
        """Remove the files of this round."""
        for source in self._sources:
            shutil.rmtree(source)


def _linked(source: Path, target: Path) -> Path:
    """Return a directory of the same files, to be given away."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def _close(child: Any) -> None:
    """Let a contender delete what it has in the working directory."""
    child.start("close", [{}])
    child.answer()


def training(sizes: Sizes) -> Iterator[Benchmark]:
    """Return checkpoint-blocking and checkpoint-throughput."""
    yield Blocking(sizes)
    yield Throughput(sizes)
