"""Ours: one `Checkpointer` for as long as its process trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hfflows
from hfflows.identity import RunIdentity

if TYPE_CHECKING:
    from hfflows.checkpoint import PendingSave

IDENTITY = RunIdentity(namespace="bench", flow="train", task="fit", run="run-0")


class HfflowsTraining:
    """Checkpoints of one attempt; what is put aside lies below the working directory."""

    def __init__(self, bucket: str) -> None:
        self._checkpointer = hfflows.Checkpointer(
            IDENTITY, temp_dir_root=Path.cwd(), store=hfflows.open_store(f"s3://{bucket}")
        )
        self._pending: PendingSave | None = None
        self._began = 0.0

    def save(self, source: str) -> dict[str, Any]:
        """Save and wait; returns the reference."""
        return self._checkpointer.save(source).model_dump(mode="json")

    def put_aside(self, source: str, *, move: bool) -> str | None:
        """Begin a save in the background; returns how the files were put aside."""
        self._began = time.perf_counter()
        self._pending = self._checkpointer.save(source, block=False, move=move)
        return self._pending.staged_by

    def committed(self) -> dict[str, Any]:
        """Wait for that save; returns the reference, and how long all of it took."""
        assert self._pending is not None  # noqa: S101 - `put_aside` comes first
        ref = self._pending.result()
        seconds = time.perf_counter() - self._began
        return {"ref": ref.model_dump(mode="json"), "seconds": seconds}

    def resume(self) -> str:
        """Find and load the newest checkpoint of this run; returns where it lies."""
        assert self._checkpointer.is_loaded  # noqa: S101 - there is one
        return str(self._checkpointer.directory)

    def load(self, saved: dict[str, Any], target: str) -> None:
        """Load a checkpoint by its reference."""
        self._checkpointer.load(saved, target)

    def close(self) -> None:
        """Delete what lies below the working directory."""
        self._checkpointer.close()
