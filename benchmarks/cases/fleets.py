"""Several workers and one repo: all at once, or one after another's sudden end."""

from __future__ import annotations

import shutil
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from benchmarks.cases.snapshots import GROUP, OURS, REPO_ID, new_repo_files
from benchmarks.contenders.tuning import default_lease_seconds
from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.files import FileSet
    from benchmarks.lab import Lab
    from benchmarks.process import ChildProcess
    from benchmarks.spec import Sample

_POLL_SECONDS = 0.005
_CALL = [{"repo_id": REPO_ID}]


class Fleet(Benchmark):
    """Workers that want a repo which nobody has seen before, and an empty bucket."""

    def __init__(
        self,
        name: str,
        description: str,
        files: FileSet,
        *,
        row: Row = OURS,
        bars: dict[str, float],
        parameters: dict[str, int] | None = None,
    ) -> None:
        super().__init__(
            name,
            description,
            parameters={**files.parameters(), **(parameters or {})},
            rows=(row,),
            bars=tuple(
                Bar(row=row.name, metric=metric, limit=limit) for metric, limit in bars.items()
            ),
            group=GROUP,
            plotted=("seconds", "hub_per_byte"),
        )
        self._files = files

    def begin_round(self, lab: Lab) -> None:
        """Publish a new repo."""
        self._source = new_repo_files(lab, self._files)
        self._hub = lab.new_hub()
        self._hub.publish(REPO_ID, self._source)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Let the workers work, look at what came of it, load and compare."""
        bucket = lab.new_bucket()
        tally = lab.tally(bucket)
        results, sample = self.work(lab, row, bucket)
        sample |= tally()
        for result in {result["key"]: result for result in results}.values():
            lab.check_saved(row, bucket, result, self._source)
        lab.drop_bucket(bucket)
        return {**sample, "hub_per_byte": sample["hub_bytes"] / self._files.total_bytes}

    @abstractmethod
    def work(self, lab: Lab, row: Row, bucket: str) -> tuple[list[Any], Sample]:
        """Return what the workers returned, and what else is to be said of it."""

    def end_round(self) -> None:
        """Remove the files of this round."""
        shutil.rmtree(self._source)

    def wait_for_share(self, worker: ChildProcess, share: float) -> None:
        """Return when the Hub has sent this share of the repo, while the worker works.

        Raises:
            BenchmarkError: It ended before that.
        """
        enough = share * self._files.total_bytes
        while self._hub.sent_so_far() < enough and not worker.has_ended():
            time.sleep(_POLL_SECONDS)
        if worker.has_ended():
            worker.answer()  # raises with its last words, when it died
            msg = "the download ended before it could be killed: it takes a larger repo"
            raise BenchmarkError(msg)


class AllAtOnce(Fleet):
    """Workers that start together."""

    def work(self, lab: Lab, row: Row, bucket: str) -> tuple[list[Any], Sample]:
        """Start all of them; the time is that of the last."""
        with lab.children(row, bucket, self.parameters["workers"]) as workers:
            began = time.monotonic()
            for worker in workers:
                worker.start("snapshot", _CALL)
            answers = [worker.answer() for worker in workers]
            seconds = time.monotonic() - began
        return [answer["results"][0] for answer in answers], {"seconds": seconds}


class DeadHolder(Fleet):
    """`kill -9` of the worker that fetches, half way, while another waits for it."""

    def work(self, lab: Lab, row: Row, bucket: str) -> tuple[list[Any], Sample]:
        """Kill one; the time is the other's from then on."""
        with lab.children(row, bucket, 2) as (holder, waiting):
            holder.start("snapshot", _CALL)
            self.wait_for_share(holder, 1 / 8)
            waiting.start("snapshot", _CALL)
            self.wait_for_share(holder, 1 / 2)
            holder.kill()
            killed = time.monotonic()
            answer = waiting.answer()
            seconds = time.monotonic() - killed
        return answer["results"], {"seconds": seconds}


class Restarted(Fleet):
    """`kill -9` of the only worker half way, then the same again from the start."""

    def work(self, lab: Lab, row: Row, bucket: str) -> tuple[list[Any], Sample]:
        """Kill one, let another begin; the time is that of the other."""
        with lab.child(row, bucket) as killed:
            killed.start("snapshot", _CALL)
            self.wait_for_share(killed, 1 / 2)
            killed.kill()
        again = lab.perform(row, bucket, "snapshot", **_CALL[0])
        return again.results, again.sample


def fleets(sizes: Sizes) -> Iterator[Benchmark]:
    """Return those benchmarks of the group snapshots in which several processes work."""
    lease_seconds = sizes.lease_seconds or default_lease_seconds()
    row = Row(
        name=OURS.name, contender=OURS.contender, options={"lease_seconds": sizes.lease_seconds}
    )
    yield AllAtOnce(
        "snapshot-fleet",
        "Copy a repo into an empty store, many workers at once.",
        sizes.repo,
        bars={"hub_per_byte": 1.02},
        parameters={"workers": sizes.workers},
    )
    yield DeadHolder(
        "snapshot-dead-holder",
        "Kill the worker that fetches half way; time of the one that waited, from then on.",
        sizes.killed_repo,
        row=row,
        bars={"seconds": lease_seconds + 10, "hub_per_byte": 1.6},
    )
    yield Restarted(
        "snapshot-killed",
        "Kill a snapshot half way and begin again; bytes are those of both together.",
        sizes.killed_repo,
        row=row,
        bars={"hub_per_byte": 1.1},
    )
