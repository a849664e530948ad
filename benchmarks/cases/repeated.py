"""Saves of what was saved before, changed a little or not at all: the bytes that are sent."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.cases.sizes import KIB
from benchmarks.contenders.tuning import default_object_bytes
from benchmarks.files import write_random
from benchmarks.spec import Bar, Benchmark, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.cases.sizes import Sizes
    from benchmarks.files import FileSet
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

Change: TypeAlias = "Callable[[Path], Path | None]"
"""Changes something in a directory and returns the file that it changed."""

OURS = ("hfflows", "hfflows, base given")
ROWS = (
    Row(name=OURS[0], contender="hfflows"),
    Row(name=OURS[1], contender="hfflows", options={"use_base": True}),
    Row(name="s5cmd sync", contender="s5cmd"),
)
_SMALL_CHANGE_BYTES = 64 * KIB


class RepeatedSaves(Benchmark):
    """Saves of a directory of which the bucket holds an earlier state."""

    def __init__(
        self, name: str, description: str, files: FileSet, *, change: Change, limit_bytes: float
    ) -> None:
        super().__init__(
            name,
            description,
            parameters=files.parameters(),
            rows=ROWS,
            bars=tuple(Bar(row=row, metric="bytes_to_server", limit=limit_bytes) for row in OURS),
            group="save-again",
            reference=OURS[0],
            plotted=("seconds", "bytes_to_server"),
        )
        self._files = files
        self._change = change

    def begin_round(self, lab: Lab) -> None:
        """Make the files, and their later state."""
        self._before = lab.new_files(self._files)
        self._after = lab.new_path()
        # With their times: the unchanged files are older than their objects, as in real life.
        shutil.copytree(self._before, self._after)
        self._changed = self._change(self._after)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Save the first state, measure saving the second, load and compare."""
        bucket = lab.new_bucket()
        first = lab.perform(row, bucket, "save", source=str(self._before))
        if self._changed is not None:
            os.utime(self._changed)
        again = lab.perform(row, bucket, "save_again", source=str(self._after), saved=first.result)
        lab.check_saved(row, bucket, again.result, self._after)
        lab.drop_bucket(bucket)
        return again.sample

    def end_round(self) -> None:
        """Remove both states."""
        shutil.rmtree(self._before)
        shutil.rmtree(self._after)


def change_one_file(root: Path) -> Path:
    """Replace one file's content."""
    path = sorted(root.iterdir())[1]
    with path.open("r+b") as file:
        write_random(file.fileno(), path.stat().st_size)
    return path


def change_the_middle(root: Path) -> Path:
    """Replace a little in the middle of the first file."""
    path = min(root.iterdir())
    with path.open("r+b", buffering=0) as file:
        file.seek(path.stat().st_size // 2)
        write_random(file.fileno(), _SMALL_CHANGE_BYTES)
    return path


def change_nothing(root: Path) -> None:
    """Leave everything as it is."""


def repeated_saves(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmarks of the group save-again."""
    yield RepeatedSaves(
        "save-again-file",
        "Save again after one of the files changed.",
        sizes.large,
        change=change_one_file,
        limit_bytes=sizes.large.size_bytes * 1.01,
    )
    yield RepeatedSaves(
        "save-again-nothing",
        "Save again after nothing changed.",
        sizes.large,
        change=change_nothing,
        limit_bytes=64 * KIB,
    )
    yield RepeatedSaves(
        "save-again-middle",
        "Save again after 64 KiB changed in the middle of one file.",
        sizes.single,
        change=change_the_middle,
        limit_bytes=3 * default_object_bytes() * 1.01,
    )
