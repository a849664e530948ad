"""A Hub repo at a commit to a snapshot in the store, and artifacts back to the Hub."""

from hfflows.hub._cache_layout import load_into_hf_cache
from hfflows.hub._card import CardContent, Metric
from hfflows.hub._detect import detect_model_source
from hfflows.hub._detect_local import ModelSource
from hfflows.hub._facts import ModelFacts, model_facts
from hfflows.hub._load import load_snapshot
from hfflows.hub._options import Slot
from hfflows.hub._preflight import PlannedFile, SnapshotPlan, inspect_snapshot
from hfflows.hub._publish import PublishResult, push_to_hub
from hfflows.hub._repair import repair_snapshot
from hfflows.hub._snapshot import SnapshotResult, fetch_snapshot, snapshot_download
from hfflows.hub._weights import Weights

__all__ = [
    "CardContent",
    "Metric",
    "ModelFacts",
    "ModelSource",
    "PlannedFile",
    "PublishResult",
    "Slot",
    "SnapshotPlan",
    "SnapshotResult",
    "Weights",
    "detect_model_source",
    "fetch_snapshot",
    "inspect_snapshot",
    "load_into_hf_cache",
    "load_snapshot",
    "model_facts",
    "push_to_hub",
    "repair_snapshot",
    "snapshot_download",
]
