"""Hub repos into the store and out of it again, beside each leg of the way alone."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from benchmarks.cases.repeated import change_one_file
from benchmarks.cases.transfer import measured_load
from benchmarks.files import check_equal
from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases.sizes import Sizes
    from benchmarks.files import FileSet
    from benchmarks.lab import Lab, Measured
    from benchmarks.spec import Sample

GROUP = "snapshots"
REPO_ID = "bench/model"
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"

OURS = Row(name="hfflows", contender="snapshots")
METAFLOW = Row(name="metaflow-checkpoint", contender="metaflow-hub")
DOWNLOAD = Row(name="huggingface_hub (download)", contender="huggingface_hub")
UPLOADS = (
    Row(name="s5cmd (upload)", contender="s5cmd"),
    Row(name="obstore (upload)", contender="obstore"),
    Row(
        name="obstore 16 MiB parts (upload)",
        contender="obstore",
        options={"part_bytes": 16 * 1024**2},
    ),
    Row(name="s3fs (upload)", contender="s3fs"),
    Row(name="boto3 (upload)", contender="boto3"),
)
S5CMD = Row(name="s5cmd", contender="s5cmd")
_FROM_HUB = (OURS.contender, METAFLOW.contender, DOWNLOAD.contender)


def new_repo_files(lab: Lab, files: FileSet) -> Path:
    """Return a new directory with all that a repo has once it is published."""
    source = lab.new_files(files)
    (source / ".gitattributes").write_text(_ATTRIBUTES)  # every repo has one
    return source


def brought(lab: Lab, row: Row, bucket: str, source: Path, commit: str) -> Measured:
    """Bring a repo to where the row's contender brings it, or its files where it has no Hub."""
    if row.contender in _FROM_HUB:
        return lab.perform(row, bucket, "snapshot", repo_id=REPO_ID, revision=commit)
    return lab.perform(row, bucket, "save", source=str(source))


class Cold(Benchmark):
    """Snapshots of a repo that nobody has seen before, into an empty bucket."""

    def __init__(self, files: FileSet) -> None:
        super().__init__(
            "snapshot-cold",
            "Copy a repo from the Hub into an empty store.",
            parameters=files.parameters(),
            rows=(OURS, METAFLOW, DOWNLOAD, *UPLOADS),
            bars=(
                Bar(
                    row=OURS.name,
                    metric="seconds",
                    limit=1.15,
                    against=tuple(row.name for row in UPLOADS),
                    or_worse=(DOWNLOAD.name,),
                ),
                Bar(row=OURS.name, metric="seconds", limit=0.55, against=(METAFLOW.name,)),
                Bar(row=OURS.name, metric="disk_bytes", limit=0.05 * files.total_bytes),
            ),
            group=GROUP,
            reference=OURS.name,
            plotted=("seconds", "cpu_seconds", "disk_bytes"),
        )
        self._files = files

    def set_up(self, lab: Lab) -> None:
        """Find out whether writes are counted here."""
        self._counts_disk = lab.counts_disk()

    def begin_round(self, lab: Lab) -> None:
        """Publish a new repo."""
        self._source = new_repo_files(lab, self._files)
        self._commit = lab.new_hub().publish(REPO_ID, self._source)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure the way from the Hub to the store, or the row's leg of it; compare."""
        bucket = lab.new_bucket()
        made = brought(lab, row, bucket, self._source, self._commit)
        lab.check_saved(row, bucket, made.result, self._source)
        lab.drop_bucket(bucket)
        disk = {"disk_bytes": made.disk_bytes} if self._counts_disk else {}
        return {**made.sample, **disk}

    def end_round(self) -> None:
        """Remove the files of this round."""
        shutil.rmtree(self._source)


class Warm(Benchmark):
    """One repo that stays, and is in each contender's bucket from its first turn on."""

    def __init__(self, name: str, description: str, files: FileSet, **options: Any) -> None:
        super().__init__(name, description, parameters=files.parameters(), group=GROUP, **options)
        self._files = files

    def set_up(self, lab: Lab) -> None:
        """Publish the repo."""
        self._source = new_repo_files(lab, self._files)
        self._commit = lab.new_hub().publish(REPO_ID, self._source)
        self._stored: dict[str, tuple[str, Any]] = {}

    def stored(self, lab: Lab, row: Row) -> tuple[str, Any]:
        """Return the row's bucket and what names the repo's copy in it."""
        if row.name not in self._stored:
            bucket = lab.new_bucket()
            made = brought(lab, row, bucket, self._source, self._commit)
            lab.check_saved(row, bucket, made.result, self._source)
            self._stored[row.name] = bucket, made.result
        return self._stored[row.name]


class WarmLoad(Warm):
    """Loads of a repo that the store has."""

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure a load into a new directory and compare."""
        bucket, saved = self.stored(lab, row)
        if row.contender not in _FROM_HUB:
            return measured_load(lab, row, bucket, saved, self._source)
        target = lab.new_path()
        asked = {"repo_id": REPO_ID, "revision": self._commit, "target": str(target)}
        loaded = lab.perform(row, bucket, "load_snapshot", **asked)
        shutil.rmtree(target / ".cache", ignore_errors=True)  # the Hub client's, stored too
        check_equal(self._source, target)
        shutil.rmtree(target)
        return loaded.sample


class Pinned(Warm):
    """Snapshots of a full commit that the store has: the reference again, no byte moved."""

    def __init__(self, files: FileSet, calls: int) -> None:
        super().__init__(
            "snapshot-pinned",
            "Ask again for a full commit that the store has.",
            files,
            rows=(OURS, METAFLOW),
            bars=tuple(
                Bar(row=OURS.name, metric=metric, limit=limit)
                for metric, limit in (("hub_requests", 0), ("requests", 2), ("seconds", 0.03))
            ),
            reference=OURS.name,
            plotted=("seconds", "requests"),
        )
        self.parameters["calls"] = self._calls = calls

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure calls of one process; each must return what is stored."""
        bucket, saved = self.stored(lab, row)
        call = {"repo_id": REPO_ID, "revision": self._commit}
        asked = lab.perform_all(row, bucket, "snapshot", [call] * self._calls)
        if {result["key"] for result in asked.results} != {saved["key"]}:
            msg = "another copy of the repo was returned"
            raise BenchmarkError(msg)
        return asked.sample


class NewRevision(Benchmark):
    """A branch that has moved on to a commit with one changed file."""

    def __init__(self, files: FileSet) -> None:
        super().__init__(
            "snapshot-new-revision",
            "Copy a new revision, of which the store has all files but one.",
            parameters=files.parameters(),
            rows=(OURS,),
            bars=(Bar(row=OURS.name, metric="hub_bytes", limit=1.01 * files.size_bytes),),
            group=GROUP,
            plotted=("seconds", "hub_bytes"),
        )
        self._files = files

    def begin_round(self, lab: Lab) -> None:
        """Publish a new repo, and then its next commit."""
        self._source, hub = new_repo_files(lab, self._files), lab.new_hub()
        self._before = hub.publish(REPO_ID, self._source)
        change_one_file(self._source)
        hub.publish(REPO_ID, self._source)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Copy the first commit, measure copying the branch, load and compare."""
        bucket = lab.new_bucket()
        lab.perform(row, bucket, "snapshot", repo_id=REPO_ID, revision=self._before)
        made = lab.perform(row, bucket, "snapshot", repo_id=REPO_ID)
        lab.check_saved(row, bucket, made.result, self._source)
        lab.drop_bucket(bucket)
        return made.sample

    def end_round(self) -> None:
        """Remove the files of this round."""
        shutil.rmtree(self._source)


def snapshots(sizes: Sizes) -> Iterator[Benchmark]:
    """Return those benchmarks of the group snapshots in which one process works."""
    yield Cold(sizes.repo)
    yield WarmLoad(
        "snapshot-warm-load",
        "Load a repo that the store has.",
        sizes.repo,
        rows=(OURS, S5CMD, METAFLOW),
        bars=(Bar(row=OURS.name, metric="seconds", limit=1.1, against=(S5CMD.name,)),),
        reference=OURS.name,
        plotted=("seconds", "cpu_seconds", "requests"),
    )
    yield Pinned(sizes.repo, sizes.calls)
    yield NewRevision(sizes.repo)
