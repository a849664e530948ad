"""Ours: `snapshot_download` and `load_snapshot`."""

from __future__ import annotations

from typing import Any

import hfflows
from benchmarks.contenders.tuning import tune


class HfflowsSnapshots:
    """Snapshots in a store at the root of the bucket.

    Args:
        bucket: Where.
        lease_seconds: How long a worker that died keeps others waiting; `None` means the
            default.
    """

    def __init__(self, bucket: str, *, lease_seconds: float | None = None) -> None:
        self._store = hfflows.open_store(f"s3://{bucket}")
        tune(lease_seconds=lease_seconds)

    def snapshot(self, repo_id: str, revision: str | None = None) -> dict[str, Any]:
        """Copy a repo into the store, if it is not there; returns the reference."""
        ref = hfflows.snapshot_download(repo_id, revision=revision, store=self._store)
        return ref.model_dump(mode="json")

    def load_snapshot(self, repo_id: str, revision: str, target: str) -> None:
        """Load a repo by way of the store, verified as always."""
        with hfflows.load_snapshot(repo_id, revision=revision, path=target, store=self._store):
            pass

    def load(self, saved: dict[str, Any], target: str) -> None:
        """Load what a reference stands for."""
        hfflows.load_artifact(saved, target, store=self._store)
