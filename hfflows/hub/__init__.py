"""A Hub repo at a commit to a snapshot in the store, and artifacts back to the Hub."""

from hfflows.hub._card import CardContent, Metric
from hfflows.hub._publish import PublishResult, push_to_hub
from hfflows.hub._repair import repair_snapshot
from hfflows.hub._snapshot import (
    SnapshotResult,
    fetch_snapshot,
    load_snapshot,
    snapshot_download,
)

__all__ = [
    "CardContent",
    "Metric",
    "PublishResult",
    "SnapshotResult",
    "fetch_snapshot",
    "load_snapshot",
    "push_to_hub",
    "repair_snapshot",
    "snapshot_download",
]
