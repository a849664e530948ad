"""metaflow-checkpoint, the way a process that a Metaflow task started uses it.

Its `Checkpoint` writes outside a running flow when `METAFLOW_CHECKPOINT_UID` says which task
it works for, so that no flow, card or metadata service is in the measurement.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_TASK = "Bench/1/train/1/benchmark/benchmark/0"  # flow/run/step/task/identifier/scope/attempt


def configure(bucket: str) -> None:
    """Be a process of a Metaflow task that keeps its data in a bucket; before the import."""
    os.environ |= {
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{bucket}/mf",
        "METAFLOW_S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
        "METAFLOW_CHECKPOINT_UID": _TASK,
        "METAFLOW_DEFAULT_METADATA": "local",
        "METAFLOW_USER": "benchmark",
    }


class MetaflowCheckpoint:
    """Checkpoints in one of its two formats.

    Args:
        bucket: Where.
        storage_format: `files` or `tar`.
    """

    def __init__(self, bucket: str, *, storage_format: str) -> None:
        configure(bucket)
        from metaflow import Checkpoint

        self._checkpoint = Checkpoint()
        self._format = storage_format

    def save(self, source: str) -> dict[str, Any]:
        """Save a checkpoint; returns its reference."""
        saved: dict[str, Any] = self._checkpoint.save(source, storage_format=self._format)
        return saved

    def load(self, saved: dict[str, Any], target: str) -> None:
        """Load a checkpoint by its reference."""
        Path(target).mkdir()
        self._checkpoint.load(saved, target)
