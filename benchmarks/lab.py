"""Where a benchmark works: a server, a directory, buckets, and processes that are measured."""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.files import check_equal, spread_directories
from benchmarks.hub import running_hub
from benchmarks.meter import written_to_disk
from benchmarks.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from benchmarks.files import FileSet
    from benchmarks.hub import BenchHub
    from benchmarks.server import BenchServer
    from benchmarks.spec import Row, Sample


_PROBE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What calls returned, and what they cost."""

    results: list[Any]
    sample: Sample
    disk_bytes: float
    """Written to disk by the process, over all calls."""

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
        self._hub: BenchHub | None = None
        self._hubs = ExitStack()
        self._services = ExitStack()
        self._services_environ: dict[str, str] = {}
        self._buckets: list[str] = []
        self._made = 0

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="hfflows-bench-"))
        spread_directories(self._directory)
        self._prefix = f"bench-{secrets.token_hex(4)}-"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hubs.close()
        self._services.close()
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

    def new_hub(self) -> BenchHub:
        """Return an empty Hub, which every child finds from now on; the one before it ends."""
        self._hubs.close()
        self._hub = self._hubs.enter_context(running_hub(self.new_path()))
        return self._hub

    def start_prefect(self) -> None:
        """Start a Prefect server, which every child finds from now on."""
        from hfflows.testing import LocalPrefect

        server = self._services.enter_context(LocalPrefect())
        self._services_environ = server.environ()

    def counts_disk(self) -> bool:
        """Return whether the kernel counts what is written where temporary files go."""
        path, before = self.new_path(), written_to_disk()
        path.write_bytes(b"x" * _PROBE_BYTES)
        path.unlink()
        return written_to_disk() - before >= _PROBE_BYTES

    def new_path(self) -> Path:
        """Return a path at which nothing is yet."""
        # The random part has ext4 put it somewhere else than the one before.
        return self._directory / f"data-{self._number()}-{secrets.token_hex(4)}"

    def new_files(self, files: FileSet) -> Path:
        """Return a new directory of fresh content."""
        path = self.new_path()
        files.write(path)
        return path

    @contextmanager
    def child(self, row: Row, bucket: str) -> Iterator[ChildProcess]:
        """Yield the row's contender, ready in a process of its own."""
        with self.children(row, bucket, 1) as (child,):
            yield child

    @contextmanager
    def children(self, row: Row, bucket: str, count: int) -> Iterator[list[ChildProcess]]:
        """Yield the row's contender in several processes, all of them ready."""
        setting = {"contender": row.contender, "bucket": bucket, "options": dict(row.options)}
        with ExitStack() as stack:
            started = [
                stack.enter_context(
                    ChildProcess(setting, environ=self._environ(), directory=self._directory)
                )
                for _ in range(count)
            ]
            for child in started:
                child.answer()
            yield started

    def tally(self, bucket: str) -> Callable[[], Sample]:
        """Return a function that says what the servers have counted since now.

        Now is when the disk is quiet.
        """
        if self._is_quiet:
            os.sync()
        server, hub = self.server, self._hub
        stored, fetched = server.counts(bucket), hub.counts() if hub is not None else None

        def since() -> Sample:
            counted = server.counts(bucket).since(stored)
            if hub is not None and fetched is not None:
                counted |= hub.counts().since(fetched)
            return counted

        return since

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
            tally = self.tally(bucket)
            child.start(operation, calls)
            answer = child.answer()
            counted = tally()
        per_call = {"cpu_seconds": answer["cpu_seconds"], **counted}
        sample = {
            "seconds": statistics.median(answer["seconds"]),
            "peak_bytes": answer["peak_bytes"],
            **{name: value / len(calls) for name, value in per_call.items()},
        }
        if len(calls) > 1:
            sample["first_seconds"] = answer["seconds"][0]
        return Measured(answer["results"], sample, answer["disk_bytes"])

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

    def _environ(self) -> dict[str, str]:
        """Return variables with which one more child finds the servers, and nothing cached."""
        environ = {**self.server.environ(), **self._services_environ}
        if self._hub is not None:
            environ |= self._hub.environ | {"HF_HOME": str(self.new_path())}
        return environ

    def _number(self) -> int:
        self._made += 1
        return self._made
