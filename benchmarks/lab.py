"""Where a benchmark works: a server, a directory, buckets, and processes that are measured."""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.files import check_equal
from benchmarks.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from benchmarks.files import FileSet
    from benchmarks.server import BenchServer
    from benchmarks.spec import Row, Sample


@dataclass(frozen=True, slots=True)
class Measured:
    """What calls returned, and what they cost."""

    results: list[Any]
    sample: Sample

    @property
    def result(self) -> Any:
        """Return what the only call returned."""
        (result,) = self.results
        return result


class Lab:
    """Buckets and directories of one benchmark, removed at the end.

    Args:
        server: A running server.
        is_quiet: Whether to wait for the disk before each measurement: what one contender
            left to be written back must not be paid by the next.
    """

    def __init__(self, server: BenchServer, *, is_quiet: bool) -> None:
        self.server = server
        self._is_quiet = is_quiet
        self._buckets: list[str] = []
        self._made = 0

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="hfflows-bench-"))
        self._prefix = f"bench-{secrets.token_hex(4)}-"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        for bucket in list(self._buckets):
            self.drop_bucket(bucket)

    def new_bucket(self) -> str:
        """Return an empty bucket that nothing else is counted in."""
        name = self.server.create_ready_bucket(self._prefix + str(self._number()))
        self._buckets.append(name)
        return name

    def drop_bucket(self, bucket: str) -> None:
        """Remove a bucket and free its disk."""
        self.server.delete_bucket(bucket)
        self._buckets.remove(bucket)

    def new_path(self) -> Path:
        """Return a path at which nothing is yet."""
        return self._directory / f"data-{self._number()}"

    def new_files(self, files: FileSet) -> Path:
        """Return a new directory of fresh content."""
        path = self.new_path()
        files.write(path)
        return path

    @contextmanager
    def child(self, row: Row, bucket: str) -> Iterator[ChildProcess]:
        """Yield the row's contender, ready in a process of its own."""
        setting = {"contender": row.contender, "bucket": bucket, "options": dict(row.options)}
        environ = self.server.environ()
        with ChildProcess(setting, environ=environ, directory=self._directory) as child:
            yield child

    def perform(self, row: Row, bucket: str, operation: str, **arguments: Any) -> Measured:
        """Measure one call in a new process.

        Raises:
            BenchmarkError: The contender failed; carries its last words.
        """
        return self.perform_all(row, bucket, operation, [arguments])

    def perform_all(
        self, row: Row, bucket: str, operation: str, calls: Sequence[Mapping[str, Any]]
    ) -> Measured:
        """Measure several calls, one after the other, in one new process."""
        with self.child(row, bucket) as child:
            if self._is_quiet:
                os.sync()
            before = self.server.counts(bucket)
            child.start(operation, calls)
            answer = child.answer()
            counted = self.server.counts(bucket).since(before)
        per_call = {"cpu_seconds": answer["cpu_seconds"], **counted}
        sample = {
            "seconds": statistics.median(answer["seconds"]),
            "peak_bytes": answer["peak_bytes"],
            **{name: value / len(calls) for name, value in per_call.items()},
        }
        if len(calls) > 1:
            sample["first_seconds"] = answer["seconds"][0]
        return Measured(answer["results"], sample)

    def check_saved(self, row: Row, bucket: str, saved: Any, source: Path) -> None:
        """Load what a contender saved and compare it with the source, untimed.

        Raises:
            BenchmarkError: It fails to load, or differs.
        """
        target = self.new_path()
        with self.child(row, bucket) as child:
            child.start("load", [{"saved": saved, "target": str(target)}])
            child.answer()
        check_equal(source, target)
        shutil.rmtree(target)

    def _number(self) -> int:
        self._made += 1
        return self._made
