"""A save that is killed half way and done again."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

OURS = "hfflows"
_POLL_SECONDS = 0.005


class KilledSaves(Benchmark):
    """`kill -9` once the server has half of the bytes, then the same save from the start."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "killed-save",
            "Kill a save half way and save again; bytes are those of both together.",
            parameters=sizes.killed.parameters(),
            rows=(Row(name=OURS, contender="hfflows"),),
            bars=(Bar(row=OURS, metric="sent_per_byte", limit=1.1),),
            plotted=("sent_per_byte",),
        )
        self._files = sizes.killed

    def begin_round(self, lab: Lab) -> None:
        """Make the files of this round."""
        self._source = lab.new_files(self._files)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Kill, save again, load and compare."""
        bucket, total = lab.new_bucket(), self._files.total_bytes
        begin = lab.server.counts(bucket)
        self._save_and_kill(lab, row, bucket, total // 2)
        again = lab.perform(row, bucket, "save", source=str(self._source))
        # Not the sum of two readings: what was on its way at the kill is counted in between.
        sent = lab.server.counts(bucket).since(begin)["bytes_to_server"]
        lab.check_saved(row, bucket, again.result, self._source)
        lab.drop_bucket(bucket)
        return {
            **again.sample,
            "bytes_to_server": sent,
            "bytes_before_kill": sent - again.sample["bytes_to_server"],
            "sent_per_byte": sent / total,
        }

    def _save_and_kill(self, lab: Lab, row: Row, bucket: str, after_bytes: int) -> None:
        with lab.child(row, bucket) as child:
            child.start("save", [{"source": str(self._source)}])
            while lab.server.received_so_far(bucket) < after_bytes and not child.has_ended():
                time.sleep(_POLL_SECONDS)
            if child.has_ended():
                child.answer()  # raises with its last words, when it died
                msg = "the save ended before it could be killed: it takes a larger one"
                raise BenchmarkError(msg)
            child.kill()

    def end_round(self) -> None:
        """Remove the files of this round."""
        shutil.rmtree(self._source)


def killed_saves(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark killed-save."""
    yield KilledSaves(sizes)
