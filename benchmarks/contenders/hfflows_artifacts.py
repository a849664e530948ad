"""Ours: `save_artifact` and `load_artifact`."""

from __future__ import annotations

from typing import Any, Literal

import hfflows
from benchmarks.contenders.tuning import tune
from hfflows.refs import ArtifactRef, StorageFormat


class HfflowsArtifacts:
    """Artifacts in a store at the root of the bucket.

    Args:
        bucket: Where.
        storage_format: Layout to save in.
        use_base: Whether `save_again` names the artifact that was saved before.
        engine: Engine of the store; `None` means the default.
        object_bytes: Size of a packed object; `None` means the default.
        concurrency: Uploads and reads in flight; `None` means the default.
    """

    def __init__(
        self,
        bucket: str,
        *,
        storage_format: StorageFormat = "packed",
        use_base: bool = False,
        engine: Literal["obstore", "fsspec"] | None = None,
        object_bytes: int | None = None,
        concurrency: int | None = None,
    ) -> None:
        self._store = hfflows.open_store(f"s3://{bucket}", engine=engine)
        self._format = storage_format
        self._use_base = use_base
        tune(object_bytes=object_bytes, concurrency=concurrency)

    def save(self, source: str) -> dict[str, Any]:
        """Save a directory; returns the reference."""
        return self._save(source, None)

    def save_again(self, source: str, saved: dict[str, Any]) -> dict[str, Any]:
        """Save a directory of which an earlier state was saved."""
        return self._save(source, ArtifactRef.model_validate(saved) if self._use_base else None)

    def load(self, saved: dict[str, Any], target: str) -> None:
        """Load the artifact, verified as always."""
        hfflows.load_artifact(saved, target, store=self._store)

    def _save(self, source: str, base: ArtifactRef | None) -> dict[str, Any]:
        ref = hfflows.save_artifact(
            source, name="benchmark", storage_format=self._format, base=base, store=self._store
        )
        return ref.model_dump(mode="json")
