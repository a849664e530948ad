"""The Hub that snapshots come from, with counters that can be read mid-way."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SETTLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class HubCounts:
    """What a Hub has counted at both of its origins; bytes are of bodies."""

    requests: int
    bytes_sent: int

    def since(self, before: HubCounts) -> dict[str, float]:
        """Return the difference, as metrics."""
        return {
            "hub_requests": float(self.requests - before.requests),
            "hub_bytes": float(self.bytes_sent - before.bytes_sent),
        }


class BenchHub:
    """LocalHub in a process of its own: serving is no part of what is measured.

    Args:
        process: Runs `benchmarks.hub_process`.
        environ: Variables with which a client finds it.
    """

    def __init__(self, process: ChildProcess, environ: dict[str, str]) -> None:
        self._process = process
        self.environ = environ

    def publish(self, repo_id: str, folder: Path) -> str:
        """Make the branch `main` hold these files, and return the commit."""
        commit: str = self._order(order="publish", repo_id=repo_id, folder=str(folder))
        return commit

    def counts(self) -> HubCounts:
        """Return the counters once they have settled: what a client did not take is taken off."""
        before = self._counts()
        while True:
            time.sleep(_SETTLE_SECONDS)
            after = self._counts()
            if after == before:
                return after
            before = after

    def sent_so_far(self) -> int:
        """Return the bytes counted at this moment, while more are going."""
        return self._counts().bytes_sent

    def _counts(self) -> HubCounts:
        return HubCounts(*self._order(order="counts"))

    def _order(self, **line: str) -> Any:
        self._process.send(line)
        return self._process.answer()["answer"]


@contextmanager
def running_hub(root: Path) -> Iterator[BenchHub]:
    """Yield a Hub that keeps its bytes under the absent directory `root`, gone afterwards."""
    root.mkdir()
    try:
        with ChildProcess(
            {"root": str(root)}, environ={}, directory=root, module="benchmarks.hub_process"
        ) as process:
            yield BenchHub(process, process.answer()["environ"])
    finally:
        shutil.rmtree(root, ignore_errors=True)
